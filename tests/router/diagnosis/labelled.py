"""Conversations in the shapes of real agents, with one change each whose place is known.

The shapes are those that Claude Code, Codex, OpenHands, mini-swe-agent and LangChain send; the texts
are made up. A case is what was sent before and the request to diagnose, with the truth about it.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from router.diagnosis.divergence import Change

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
WORDS = re.findall(
    r"\w+",
    "the file module returns value when test fails because index range error open parse "
    "request server cache prefix token block replica session tool result list of lines in "
    "function class method import path directory build run check fix patch apply diff",
)


@dataclass
class Ask:
    """One request."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        return json.dumps(self.body).encode()


@dataclass
class Case:
    shape: str
    kind: str
    before: list[Ask]
    ask: Ask
    change: str
    part: str
    """A regular expression for the part; empty where nothing changed."""
    compared: int
    """Which of those before it is to be compared with; -1: none, or it does not matter."""
    looks: str = ""


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words)) + "."


def tool(rng: random.Random, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": text(rng, 40),
        "schema": {
            "type": "object",
            "properties": {each: {"type": "string"} for each in rng.sample(WORDS, 3)},
        },
    }


TOOL_NAMES = ("Bash", "Read", "Edit", "Grep", "Glob", "Task", "WebFetch", "TodoWrite")


class Shape:
    """An agent's conversation, from which bodies of its API are made.

    turns: ("user", text), ("call", id, name, arguments, reasoning), ("result", id, text),
    ("answer", text, reasoning).
    """

    name = ""
    path = CHAT
    tooled = True
    keyed = True

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.model = "m"
        self.system = f"You are {self.name or 'an agent'}. " + text(rng, rng.randint(150, 900))
        self.tools = [tool(rng, each) for each in TOOL_NAMES] if self.tooled else []
        self.turns: list[tuple[Any, ...]] = [("user", text(rng, rng.randint(12, 200)))]
        self.extra: dict[str, Any] = {}
        self.session = f"{rng.getrandbits(128):032x}"
        self.calls = 0

    def step(self) -> None:
        """The model calls a tool, and its result comes; now and then it answers the user."""
        rng = self.rng
        if rng.random() < 0.2:
            self.turns.append(("answer", text(rng, rng.randint(10, 60)), text(rng, 20)))
            self.turns.append(("user", text(rng, rng.randint(5, 60))))
            return
        self.calls += 1
        name = rng.choice(TOOL_NAMES)
        arguments = {"path": f"/src/{rng.choice(WORDS)}.py", "n": rng.randint(1, 999)}
        call = f"call_{self.session[:6]}_{self.calls}"
        self.turns.append(("call", call, name, arguments, text(rng, rng.randint(8, 40))))
        self.turns.append(("result", call, text(rng, rng.randint(10, 500))))

    def headers(self) -> dict[str, str]:
        return {"user-agent": f"{self.name}/1.2.3"}

    def ask(self) -> Ask:
        body = copy.deepcopy(self.body())
        body.update(self.extra)
        return Ask(self.path, {"model": self.model, **body}, self.headers())

    def body(self) -> dict[str, Any]:
        """A body of the chat API."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": self.system}]
        for turn in self.turns:
            if turn[0] == "user":
                messages.append({"role": "user", "content": turn[1]})
            elif turn[0] == "answer":
                messages.append({"role": "assistant", "content": turn[1]})
            elif turn[0] == "call":
                function = {"name": turn[2], "arguments": json.dumps(turn[3])}
                call = {"id": turn[1], "type": "function", "function": function}
                messages.append({"role": "assistant", "content": turn[4], "tool_calls": [call]})
            else:
                messages.append({"role": "tool", "tool_call_id": turn[1], "content": turn[2]})
        tools = [
            {
                "type": "function",
                "function": {
                    "name": each["name"],
                    "description": each["description"],
                    "parameters": each["schema"],
                },
            }
            for each in self.tools
        ]
        return {"messages": messages, **({"tools": tools} if tools else {})}


class OpenHands(Shape):
    name = "openhands"

    def headers(self) -> dict[str, str]:
        return {"user-agent": "OpenAI/Python 3.57.0"}


class LangChain(Shape):
    """No name of a session anywhere."""

    name = "langchain"
    keyed = False

    def headers(self) -> dict[str, str]:
        return {"user-agent": "AsyncOpenAI/Python 3.57.0"}


class MiniSwe(Shape):
    """Commands and their output as plain messages, without tools."""

    name = "mini-swe-agent"
    tooled = keyed = False

    def body(self) -> dict[str, Any]:
        messages = [{"role": "system", "content": self.system}]
        for turn in self.turns:
            if turn[0] == "user":
                messages.append({"role": "user", "content": turn[1]})
            elif turn[0] == "answer":
                messages.append({"role": "assistant", "content": turn[1]})
            elif turn[0] == "call":
                command = f"THOUGHT: {turn[4]}\n```bash\ncat {turn[3]['path']}\n```"
                messages.append({"role": "assistant", "content": command})
            else:
                output = f"<returncode>0</returncode>\n<output>\n{turn[2]}\n</output>"
                messages.append({"role": "user", "content": output})
        return {"messages": messages}


class ClaudeCode(Shape):
    name = "claude-cli"
    path = MESSAGES

    def headers(self) -> dict[str, str]:
        return {
            "user-agent": "claude-cli/2.1.20 (external, cli)",
            "x-claude-code-session-id": self.session,
        }

    def body(self) -> dict[str, Any]:
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            if turn[0] == "user":
                messages.append({"role": "user", "content": [{"type": "text", "text": turn[1]}]})
            elif turn[0] == "answer":
                messages.append(
                    {"role": "assistant", "content": [{"type": "text", "text": turn[1]}]}
                )
            elif turn[0] == "call":
                use = {"type": "tool_use", "id": turn[1], "name": turn[2], "input": turn[3]}
                said = {"type": "text", "text": turn[4]}
                messages.append({"role": "assistant", "content": [said, use]})
            else:
                result = {"type": "tool_result", "tool_use_id": turn[1], "content": turn[2]}
                messages.append({"role": "user", "content": [result]})
        # The mark moves to another message in each step, and is not part of the prompt.
        messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
        tools = [
            {"name": t["name"], "description": t["description"], "input_schema": t["schema"]}
            for t in self.tools
        ]
        return {
            "max_tokens": 1000,
            "system": [{"type": "text", "text": self.system}],
            "messages": messages,
            "tools": tools,
            "metadata": {"user_id": f"user_ab_account__session_{self.session}"},
        }


class Codex(Shape):
    name = "codex_cli_rs"
    path = RESPONSES

    def headers(self) -> dict[str, str]:
        return {"user-agent": "codex_cli_rs/0.5 (Debian)", "session_id": self.session}

    def body(self) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        for turn in self.turns:
            if turn[0] == "user":
                content = [{"type": "input_text", "text": turn[1]}]
                items.append({"type": "message", "role": "user", "content": content})
            elif turn[0] == "answer":
                content = [{"type": "output_text", "text": turn[1]}]
                items.append({"type": "message", "role": "assistant", "content": content})
            elif turn[0] == "call":
                items.append(
                    {
                        "type": "function_call",
                        "call_id": turn[1],
                        "name": turn[2],
                        "arguments": json.dumps(turn[3]),
                    }
                )
            else:
                items.append(
                    {"type": "function_call_output", "call_id": turn[1], "output": turn[2]}
                )
        tools = [
            {
                "type": "function",
                "name": t["name"],
                "description": t["description"],
                "parameters": t["schema"],
            }
            for t in self.tools
        ]
        return {
            "instructions": self.system,
            "input": items,
            "tools": tools,
            "prompt_cache_key": self.session,
        }


SHAPES = (ClaudeCode, Codex, OpenHands, MiniSwe, LangChain)


# -- changes: each takes a conversation in progress, changes it, and tells the truth

Change_ = Callable[[Shape, random.Random], tuple[str, str, str] | None]
"""Returns (change, part, what it looks like), or None where the shape has no such thing."""


def step(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    shape.step()
    return Change.NONE, "", ""


def again(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    return Change.NONE, "", ""


def model(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    shape.model = "other"
    shape.step()
    return Change.MODEL, "model", ""


def reordered(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    if not shape.tools:
        return None
    shape.tools = shape.tools[::-1]
    shape.step()
    return Change.TOOLS, "tools", "reordered tools"


def tool_added(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    if not shape.tools:
        return None
    shape.tools = [*shape.tools, tool(rng, "mcp__new")]
    shape.step()
    return Change.TOOLS, "tools", "*"


def tools_gone(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """What some agents do in their last step, so that the model answers."""
    if not shape.tools:
        return None
    shape.tools = []
    shape.step()
    return Change.TOOLS, ".*", "*"


def _within(shape: Shape, rng: random.Random, before: str, after: str, looks: str) -> Any:
    words = shape.system.split(" ")
    at = rng.randint(0, len(words))
    shape.system = " ".join((*words[:at], before, *words[at:]))
    first = shape.ask()
    shape.system = " ".join((*words[:at], after, *words[at:]))
    shape.step()
    return first, (Change.SYSTEM, "system", looks)


def time_stamp(shape: Shape, rng: random.Random) -> Any:
    hour = rng.randint(10, 22)
    return _within(
        shape, rng, f"Now: 2026-11-29T{hour}:04:59Z", f"Now: 2026-11-29T{hour}:05:31Z", "time stamp"
    )


def date(shape: Shape, rng: random.Random) -> Any:
    return _within(shape, rng, "Today is 2026-11-28.", "Today is 2026-11-29.", "time stamp")


def epoch(shape: Shape, rng: random.Random) -> Any:
    return _within(shape, rng, "t=1795000123", "t=1795000187", "time stamp")


def uuid(shape: Shape, rng: random.Random) -> Any:
    def one() -> str:
        h = f"{rng.getrandbits(128):032x}"
        return f"run {h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"

    return _within(shape, rng, one(), one(), "uuid")


def counter(shape: Shape, rng: random.Random) -> Any:
    return _within(shape, rng, "request 41", "request 42", "counter")


def nonce(shape: Shape, rng: random.Random) -> Any:
    return _within(shape, rng, "cch=a3f81;", "cch=9b04d;", "nonce")


def system_appended(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    shape.system += " " + text(rng, 30)
    shape.step()
    return Change.SYSTEM, "system", "*"


def salt(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    shape.extra["cache_salt"] = "other"
    shape.step()
    return Change.SALT, "salt", ""


def edited(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """The user takes back what they said last, and says something else."""
    at = max(i for i, turn in enumerate(shape.turns) if turn[0] == "user")
    if at == 0:
        return None
    shape.turns = [*shape.turns[:at], ("user", text(rng, 30))]
    return Change.MESSAGES, r"message \d+ .*", "*"


def elided(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """Old results are replaced by a remark, as frameworks do to save tokens."""
    at = next((i for i, turn in enumerate(shape.turns) if turn[0] == "result"), -1)
    if at < 0 or at > len(shape.turns) - 3:
        return None
    shape.turns[at] = ("result", shape.turns[at][1], "[output left out]")
    shape.step()
    part = r"message \d+ part 1" if isinstance(shape, MiniSwe) else r"message \d+ tool result.*"
    return Change.MESSAGES, part, "*"


def injected(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """A reminder is put into an early message from now on."""
    shape.turns[0] = ("user", f"<reminder>{text(rng, 20)}</reminder> {shape.turns[0][1]}")
    shape.step()
    return Change.MESSAGES, r"message 1 part 1", "*"


def summarised(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    if len(shape.turns) < 7:
        return None
    summary = (
        "This session is being continued from a previous conversation that ran out of context. "
        "The conversation is summarized below: " + text(rng, 60)
    )
    shape.turns = [("user", summary)]
    return Change.COMPACTED, r"message \d+ .*", "a summary"


def condensed(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """The first message and the last steps stay, what was between is one summary."""
    if len(shape.turns) < 9:
        return None
    tail = shape.turns[-4:]
    if tail[0][0] == "result":
        tail = shape.turns[-3:]
    shape.turns = [shape.turns[0], ("user", "<CONTEXT SUMMARY> " + text(rng, 40)), *tail]
    return Change.COMPACTED, r"message \d+.*", "a summary"


def cut_out(shape: Shape, rng: random.Random) -> tuple[str, str, str] | None:
    """A sliding window: the oldest steps are dropped."""
    if len(shape.turns) < 9:
        return None
    keep = 5
    while shape.turns[-keep][0] == "result":
        keep -= 1
    shape.turns = [shape.turns[0], *shape.turns[-keep:]]
    shape.step()
    return Change.COMPACTED, r"message \d+.*", "a summary"


def other_agent(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    """A helper of the same session, with a prompt of its own."""
    other = type(shape)(rng)
    shape.system, shape.turns = other.system, other.turns
    shape.tools = shape.tools[:3]
    return Change.NEW, "", ""


def other_task(shape: Shape, rng: random.Random) -> tuple[str, str, str]:
    """The same application, another conversation."""
    other = type(shape)(rng)
    shape.turns, shape.session = other.turns, other.session
    return Change.NEW, "", ""


CHANGES: tuple[Callable[..., Any], ...] = (
    step, again, model, reordered, tool_added, tools_gone, time_stamp, date, epoch, uuid, counter,
    nonce, system_appended, salt, edited, elided, injected, summarised, condensed, cut_out,
    other_agent, other_task,
)  # fmt: skip


def reasoned(rng: random.Random) -> Case:
    """Reasoning that was sent along in one step is left out in the next."""
    shape = OpenHands(rng)
    for _ in range(3):
        shape.calls += 1
        call = f"call_{shape.calls}"
        shape.turns.append(("call", call, "Bash", {"n": shape.calls}, ""))
        shape.turns.append(("result", call, text(rng, 50)))
    before = shape.ask()
    for message in before.body["messages"]:
        if message["role"] == "assistant":
            message["reasoning"] = text(rng, 30)
    ask = shape.ask()
    return Case(
        "openhands", "reasoned", [before], ask, Change.MESSAGES, "message 2 reasoning", 0,
        "reasoning left out",
    )  # fmt: skip


def interleaved(shape_of: type[Shape], rng: random.Random) -> Case:
    """A helper of the same session asks between two steps."""
    shape = shape_of(rng)
    helper = shape_of(rng)
    helper.session = shape.session
    before = []
    for _ in range(3):
        shape.step()
        before.append(shape.ask())
        helper.step()
        before.append(helper.ask())
    shape.step()
    return Case(shape.name, "interleaved", before, shape.ask(), Change.NONE, "", 4)


def cases(seed: int, each: int) -> Iterator[Case]:
    """So many of each kind in each shape."""
    for shape_of in SHAPES:
        for make in CHANGES:
            for number in range(each):
                rng = random.Random(f"{seed} {shape_of.__name__} {make.__name__} {number}")
                shape = shape_of(rng)
                before = []
                for _ in range(rng.randint(2, 8)):
                    before.append(shape.ask())
                    shape.step()
                before.append(shape.ask())
                made = make(shape, rng)
                if made is None:
                    continue
                if isinstance(made[0], Ask):
                    before = [made[0]]
                    made = made[1]
                change, part, looks = made
                compared = -1 if change == Change.NEW else len(before) - 1
                yield Case(
                    shape.name, make.__name__, before, shape.ask(), change, part, compared, looks
                )
        for number in range(each):
            yield interleaved(shape_of, random.Random(f"{seed} {shape_of.__name__} {number}"))
    for number in range(each):
        yield reasoned(random.Random(f"{seed} reasoned {number}"))


def is_named(part: str, expected: str) -> bool:
    return re.fullmatch(expected, part) is not None
