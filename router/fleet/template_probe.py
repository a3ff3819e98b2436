"""Finds out how a model's chat template orders a prompt, by having the engine tokenise small ones.

Each field of a probe is said in two ways. Where the tokens of two probes part that differ in one
field is where the template puts that field; where they do not part, it leaves the field out. That
needs neither the template nor the tokenizer.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from router.types import Effect, Inline, Reasoning, TemplateTraits, ToolsPlace

Tokens = Sequence[int]
Ask = Callable[[Mapping[str, Any]], Awaitable[Tokens | None]]
"""A /tokenize body without its model -> its tokens; None when the template refuses it."""
Count = Callable[[Mapping[str, Any]], Awaitable[int]]
"""A body of the messages API without its model -> its tokens; 0 when that is not told."""

_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_EFFORT: Final = b"reasoning_effort"
_DISABLED: Final = b'thinking="disabled"'
USUAL_ARGUMENTS: Final = (
    *(b'reasoning_effort="%b"' % word.encode() for word in ("none", "minimal", *_EFFORTS)),
    _DISABLED,
    *(
        b"kwargs:%b=%b" % (name, value)
        for name in (b"enable_thinking", b"thinking", b"preserve_thinking", b"clear_thinking")
        for value in (b"true", b"false")
    ),
)
"""Template arguments that clients usually send, as router.prompt spells them."""


class UnansweredError(Exception):
    """The engine does not tokenise chats, or refuses the router."""


def _text(field: str, changed: str) -> str:
    """What a field says: twenty words, another first one when this is the field changed."""
    first = "changed" if field == changed else "given"
    return f"{first} {field} " + " ".join(f"{field} {number}" for number in range(9))


def _message(role: str, field: str, changed: str) -> dict[str, Any]:
    return {"role": role, "content": _text(field, changed)}


def _tools(changed: str) -> list[dict[str, Any]]:
    name = "change" if changed == "tool" else "give"
    function = {
        "name": name,
        "description": _text("tool", changed),
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    }
    return [{"type": "function", "function": function}]


def _ordered(changed: str = "", *, system: bool = True, tools: bool = True) -> dict[str, Any]:
    """Two turns that have everything that can stand at the front."""
    messages = [
        _message("user", "question", changed),
        _message("assistant", "answer", changed),
        _message("user", "another", changed),
    ]
    if system:
        messages.insert(0, _message("system", "system", changed))
    return {"messages": messages, "tools": _tools(changed)} if tools else {"messages": messages}


def _interrupted(role: str, changed: str = "") -> dict[str, Any]:
    """Two turns with an instruction between them."""
    body = _ordered(changed, tools=False)
    body["messages"].insert(-1, _message(role, "inline", changed))
    return body


def _called(changed: str, *behind: str) -> dict[str, Any]:
    """Reasoning with a tool call, its result, and messages of these roles after it."""
    reasoning = _text("reasoning", changed)
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "give", "arguments": '{"path":"x"}'},
    }
    messages = [
        _message("user", "question", ""),
        {
            "role": "assistant",
            "content": "",
            "reasoning": reasoning,
            "reasoning_content": reasoning,
            "tool_calls": [call],
        },
        {"role": "tool", "tool_call_id": "call00001", "content": "done"},
        *(_message(role, role, "") for role in behind),
    ]
    return {"messages": messages, "tools": _tools("")}


def _answered(changed: str) -> dict[str, Any]:
    """Reasoning with an answer, then the next question."""
    reasoning = _text("reasoning", changed)
    answer = _message("assistant", "answer", "")
    answer["reasoning"] = answer["reasoning_content"] = reasoning
    question, another = _message("user", "question", ""), _message("user", "another", "")
    return {"messages": [question, answer, another]}


def _parting(one: Tokens, other: Tokens) -> int:
    """The number of leading tokens that two prompts have in common."""
    least = min(len(one), len(other))
    return next((at for at in range(least) if one[at] != other[at]), least)


class TemplateProbe:
    """Asks one engine about one model. `traits` holds what is known so far."""

    def __init__(self) -> None:
        self._ask: Ask
        self._count: Count
        self.traits = TemplateTraits()
        self._ordered: dict[str, Any] = {}
        """The fullest prompt that the template takes."""
        self._base: Tokens = ()
        """The token ids of that prompt."""
        self._turn: tuple[dict[str, Any], Tokens | None] = ({}, None)
        """A prompt with earlier reasoning, and its tokens."""
        self._last_user = 0
        """Where its last user message begins."""
        self._by_argument: dict[bytes, Tokens | None] = {}

    def asks(self, ask: Ask, count: Count) -> None:
        """Ask the engine with these two functions from now on."""
        self._ask = ask
        self._count = count

    async def order(self) -> None:
        """Find out everything except what template arguments do. Raises UnansweredError."""
        system, tools = await self._fullest()
        at: dict[str, int | None] = {}
        for field in ("system", "tool", "question", "another"):
            tokens = await self._ask(_ordered(field, system=system, tools=tools))
            at[field] = (
                None if tokens is None or tokens == self._base else _parting(tokens, self._base)
            )
        self._last_user = at["another"] or len(self._base)
        merges, placed = (await self._interruption("system")) if system else (True, Inline.KEPT)
        self._turn = await self._reasoned()
        _, developer = await self._interruption("developer")
        self.traits = TemplateTraits(
            known=True,
            tools=_tools_place(at) if tools else ToolsPlace.AFTER_SYSTEM,
            system=placed,
            developer=developer,
            merges_system=merges,
            reasoning=await self._reasoning({}),
        )

    async def _fullest(self) -> tuple[bool, bool]:
        for system, tools in ((True, True), (False, True), (True, False), (False, False)):
            body = _ordered(system=system, tools=tools)
            tokens = await self._ask(body)
            if tokens is not None:
                self._ordered, self._base = body, tokens
                return system, tools
        raise UnansweredError("its template refuses every prompt of the probe")

    async def _interruption(self, role: str) -> tuple[bool, Inline]:
        """(whether the messages API merges it into the system prompt, what the template does)."""
        inline = await self._ask(_interrupted(role))
        merges = inline is None
        if role == "system":
            counted = await self._count(_as_messages())
            if counted and inline is not None:
                merged = await self._ask(_merged())
                merges = counted != len(inline) and merged is not None and counted == len(merged)
        if inline is None:
            return merges, Inline.KEPT
        changed = await self._ask(_interrupted(role, "inline"))
        before = await self._ask(_interrupted(role, "question"))
        if changed is None or before is None:
            return merges, Inline.KEPT
        if changed == inline:
            return merges, Inline.DROPPED
        moved = _parting(changed, inline) < _parting(before, inline)
        return merges, Inline.MOVED if moved else Inline.KEPT

    async def _reasoned(self) -> tuple[dict[str, Any], Tokens | None]:
        body = _called("", "assistant", "user")
        tokens = await self._ask(body)
        if tokens is None:
            body = _answered("")
            tokens = await self._ask(body)
        return body, tokens

    async def _reasoning(self, arguments: Mapping[str, Any]) -> Reasoning:
        shown = await self._shows(arguments, _called)
        if shown is None:
            kept = await self._shows(arguments, _answered)
            return Reasoning.KEPT if kept else Reasoning.TURN
        if not shown:
            return Reasoning.NEVER
        if not await self._shows(arguments, _called, "user"):
            return Reasoning.TURN
        if not await self._shows(arguments, _called, "assistant", "user"):
            return Reasoning.ANSWER
        return Reasoning.KEPT

    async def _shows(
        self,
        arguments: Mapping[str, Any],
        make: Callable[..., dict[str, Any]],
        *behind: str,
    ) -> bool | None:
        """Whether the reasoning of a prompt is rendered; None when the template refuses it."""
        one = await self._ask({**make("", *behind), **arguments})
        other = await self._ask({**make("reasoning", *behind), **arguments})
        return None if one is None or other is None else one != other

    async def again(self) -> None:
        """Call this before trying arguments later, since some templates print the date."""
        self._by_argument.clear()
        self._base = await self._ask(self._ordered) or self._base
        self._turn = await self._reasoned()

    async def argument(self, pair: bytes) -> None:
        """Find out what one argument does: its name, "=" and its value in JSON. After `order`."""
        effect = await self._effect(pair)
        arguments = {**self.traits.arguments, pair: effect}
        self.traits = msgspec.structs.replace(self.traits, arguments=arguments)

    async def _effect(self, pair: bytes) -> Effect:
        arguments = await self._resolved(pair)
        if arguments is None:
            return Effect()
        tokens = await self._with(pair, arguments)
        if tokens is None:
            return Effect()  # refused: there is no such prompt
        head = b""
        if tokens != self._base and _parting(tokens, self._base) < self._last_user:
            head = xxhash.xxh3_64_digest(array("q", tokens[: self._last_user]).tobytes())
        body, base = self._turn
        same = await self._ask({**body, "chat_template_kwargs": arguments}) == base
        if same or self.traits.reasoning is Reasoning.NEVER:
            return Effect(head)
        reasoning = await self._reasoning({"chat_template_kwargs": arguments})
        return Effect(head, None if reasoning is self.traits.reasoning else reasoning)

    async def _with(self, pair: bytes, arguments: Mapping[str, Any]) -> Tokens | None:
        if pair not in self._by_argument:
            body = self._ordered | {"chat_template_kwargs": arguments}
            self._by_argument[pair] = await self._ask(body)
        return self._by_argument[pair]

    async def _resolved(self, pair: bytes) -> Mapping[str, Any] | None:
        """The template's arguments that vLLM makes of one; None when it is none."""
        if pair == _DISABLED:
            return _of_effort(await self._disabled())
        name, _, text = pair.partition(b"=")
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError:
            return None
        if name == _EFFORT:
            return _of_effort(value)
        kind, _, key = name.partition(b":")
        return {key.decode(): value} if kind == b"kwargs" and key else None

    async def _disabled(self) -> str:
        """The effort that vLLM makes of thinking that is disabled: low where the template refuses
        "none", or renders it as it does another effort."""
        none = await self._with(b'reasoning_effort="none"', _of_effort("none"))
        if none is None:
            return "low"
        for word in _EFFORTS:
            if await self._with(b'reasoning_effort="%b"' % word.encode(), _of_effort(word)) == none:
                return "low"
        return "none"


def _of_effort(effort: Any) -> Mapping[str, Any]:
    return {"reasoning_effort": effort, "enable_thinking": effort != "none"}


def _tools_place(at: Mapping[str, int | None]) -> ToolsPlace:
    tool, system, question = at["tool"], at["system"], at["question"]
    if tool is None:
        return ToolsPlace.NOWHERE
    if system is not None and tool < system:
        return ToolsPlace.FIRST
    if question is not None and tool > question:
        return ToolsPlace.LAST_USER
    return ToolsPlace.AFTER_SYSTEM


def _as_messages() -> dict[str, Any]:
    """`_interrupted` in the form of the messages API."""
    system, *messages = _interrupted("system")["messages"]
    return {"system": system["content"], "messages": messages, "max_tokens": 1}


def _merged() -> dict[str, Any]:
    """`_as_messages` with its inline system messages merged into the system prompt."""
    system, question, answer, inline, another = _interrupted("system")["messages"]
    both = {"role": "system", "content": system["content"] + inline["content"]}
    return {"messages": [both, question, answer, another]}
