"""Claude Code's sessions (~/.claude/projects/*/*.jsonl).

A file has the messages of the main agent and perhaps of sub-agents (isSidechain). It has neither
the system prompt nor the tools; their size follows from the usage of the first answer, and a
made-up system prompt of that size, the same in all sessions of one size, stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Conversation, Message, Role
from loadgen.workloads.text import text as made_up
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.messages import anthropic_messages
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.segments import said_by
from loadgen.workloads.traces.source import Source

BYTES_PER_TOKEN = 4
_GRAIN = 512
"""Tokens to which the hidden part's size is rounded, so that sessions of one version share it."""

_SYNTHETIC = "<synthetic>"
"""The model of what the program itself wrote, such as an API's error: nobody was asked."""


class Usage(msgspec.Struct):
    """Of an answer; the three kinds of input together are the prompt."""

    input_tokens: Length = 0
    cache_creation_input_tokens: Length = 0
    cache_read_input_tokens: Length = 0
    output_tokens: Length = 0

    @property
    def prompt(self) -> int:
        """Tokens of the whole prompt."""
        return self.input_tokens + self.cache_creation_input_tokens + self.cache_read_input_tokens


class Said(msgspec.Struct):
    """The message in a line."""

    content: Any = None
    id: str = ""
    usage: Usage | None = None
    model: str = ""


class Line(msgspec.Struct):
    """One line; those that are no messages have other types."""

    type: str
    message: Said | None = None
    timestamp: str = ""
    is_sidechain: bool = msgspec.field(name="isSidechain", default=False)
    agent: str = msgspec.field(name="agentId", default="")
    session: str = msgspec.field(name="sessionId", default="")
    is_meta: bool = msgspec.field(name="isMeta", default=False)


class _Thread:
    """One agent's conversation. Mutable state."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.steps: list[Recorded] = []
        self._answer = ""
        self._answered = self._last = 0.0

    def line(self, line: Line) -> None:
        said = line.message
        if said is None:
            return
        at = seconds_of(line.timestamp) if line.timestamp else self._last
        if line.type == "user":
            self.said += anthropic_messages(Role.USER, said.content)
            self._last = at
            return
        if said.model == _SYNTHETIC:
            return
        messages = anthropic_messages(Role.ASSISTANT, said.content)
        message = messages[-1]
        if said.id and said.id == self._answer:
            self._more(message, said, at)
            return
        if not self.said:
            return
        pause = max(0.0, self._last - self._answered) if self._answered else 0.0
        usage = said.usage or Usage()
        self.steps.append(
            Recorded(
                at=self._last,
                pause=pause,
                prompt_tokens=usage.prompt,
                output_tokens=usage.output_tokens,
                content=Conversation(tuple(self.said)),
                answer=said_by(message),
            )
        )
        self.said.append(message)
        self._answer, self._answered = said.id, at

    def _more(self, message: Message, said: Said, at: float) -> None:
        """Another block of the same answer, which has a line of its own."""
        place = max(i for i, each in enumerate(self.said) if each.role is Role.ASSISTANT)
        before = self.said[place]
        whole = Message(
            Role.ASSISTANT,
            before.text + message.text,
            before.images + message.images,
            before.calls + message.calls,
        )
        self.said[place] = whole
        step = self.steps[-1]
        tokens = max(step.output_tokens, said.usage.output_tokens if said.usage else 0)
        self.steps[-1] = msgspec.structs.replace(step, answer=said_by(whole), output_tokens=tokens)
        self._answered = at


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A session for the main agent of each session, and for each sub-agent one of its own."""
    threads: dict[tuple[str, bool, str], _Thread] = {}
    for number, line in source.records(Line):
        if line.type in ("user", "assistant"):
            key = (line.session, line.is_sidechain, line.agent)
            try:
                threads.setdefault(key, _Thread()).line(line)
            except (ValueError, AttributeError) as error:
                raise source.wrong(number, str(error)) from error
    for thread in threads.values():
        if thread.steps:
            yield _whole(thread.steps)


def _whole(steps: list[Recorded]) -> Recording:
    first = steps[0]
    assert isinstance(first.content, Conversation)
    counted = sum(len(said_by(each).encode()) for each in first.content.messages) // BYTES_PER_TOKEN
    hidden = max(0, first.prompt_tokens - counted) // _GRAIN * _GRAIN
    prefix: tuple[Message, ...] = ()
    if hidden:
        prefix = (Message(Role.SYSTEM, made_up(hidden, hidden * BYTES_PER_TOKEN).decode()),)
    whole = []
    for step in steps:
        assert isinstance(step.content, Conversation)
        content = Conversation(prefix + step.content.messages)
        whole.append(msgspec.structs.replace(step, content=content, prompt_tokens=0, at=0.0))
    return tuple(whole)


CLAUDE_CODE = Format(
    name="claude-code",
    title="Claude Code session jsonl",
    kinds=("jsonl",),
    needs=(("type",), ("message",), ("sessionId", "uuid")),
    read=read,
    check=lambda record: record["type"] in ("user", "assistant"),
    check_said="type user or assistant",
)
