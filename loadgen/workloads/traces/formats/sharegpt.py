"""ShareGPT's conversations, and others of its shape."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.content import Conversation, Message, Role
from loadgen.workloads.traces.format import JSON, Format, list_of
from loadgen.workloads.traces.messages import role_of
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording
from loadgen.workloads.traces.source import Source


class Said(msgspec.Struct):
    """One turn."""

    who: str = msgspec.field(name="from", default="")
    value: str = ""
    role: str = ""
    content: str = ""
    """Some say role and content instead of from and value."""


class Line(msgspec.Struct):
    """One conversation."""

    conversations: list[Said]


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A conversation is a session: a step for each answer, its prompt what was said before."""
    for _, line in source.records(Line):
        said: list[Message] = []
        steps: list[Recorded] = []
        for turn in line.conversations:
            role, text = role_of(turn.who or turn.role), turn.value or turn.content
            if role is Role.ASSISTANT and said:
                steps.append(Recorded(content=Conversation(tuple(said)), answer=text))
            if said or role is not Role.ASSISTANT:
                said.append(Message(role, text))
        if steps:
            yield tuple(steps)


SHAREGPT = Format(
    name="sharegpt",
    title="ShareGPT json",
    kinds=JSON,
    needs=(("conversations",),),
    read=read,
    check=lambda record: (
        list_of(record["conversations"], "from", "value")
        or list_of(record["conversations"], "role", "content")
    ),
    check_said="from and value, or role and content, in each of conversations",
)
