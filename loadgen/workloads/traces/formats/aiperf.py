"""aiperf's inputs: single turns, sessions with delays, and traces that have texts in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Conversation, Message, Role, Verbatim
from loadgen.workloads.traces.format import JSON, Format
from loadgen.workloads.traces.messages import chat_messages, role_of
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording
from loadgen.workloads.traces.segments import named, tools_of
from loadgen.workloads.traces.source import Source


class Turn(msgspec.Struct):
    """One request; times are milliseconds."""

    text: str | None = None
    texts: list[Any] | None = None
    image: str | None = None
    images: list[Any] | None = None
    role: str | None = None
    timestamp: float | None = None
    delay: float | None = None
    session_id: str | None = None
    output_length: Length = 0


class Session(msgspec.Struct):
    """A conversation whose answers are not recorded."""

    turns: list[Turn]
    session_id: str | None = None


class Line(msgspec.Struct):
    """A line of a trace with texts."""

    text_input: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    payload: dict[str, Any] | None = None
    message_mode: str = "history"
    output_length: Length = 0
    timestamp: float | None = None
    delay: float | None = None
    session_id: str | None = None


def _user(turn: Turn) -> Message:
    texts = [turn.text] if turn.text else [_plain(each) for each in turn.texts or ()]
    images = [turn.image] if turn.image else [_plain(each) for each in turn.images or ()]
    return Message(role_of(turn.role or "user"), "\n".join(texts), tuple(filter(None, images)))


def _plain(value: Any) -> str:
    """A text, or an object with its contents."""
    if isinstance(value, dict):
        return "".join(str(each) for each in value.get("contents") or ())
    return str(value)


def read_sessions(source: Source, _reading: Reading) -> Iterator[Recording]:
    """What is really answered stands in the prompts of later turns."""
    for number, line in source.records(Session):
        steps: list[Recorded] = []
        said: list[Message] = []
        for place, turn in enumerate(line.turns):
            said.append(_user(turn))
            answer = named(f"aiperf/{number}/{place}".encode())
            steps.append(
                Recorded(
                    at=(turn.timestamp or 0.0) / 1e3,
                    pause=(turn.delay or 0.0) / 1e3 if place else 0.0,
                    output_tokens=turn.output_length,
                    content=Conversation(tuple(said)),
                    answer_id=answer,
                )
            )
            said.append(Message(Role.ASSISTANT, answer=answer))
        if steps:
            yield tuple(steps)


def read_turns(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Single requests; those of one session_id follow each other, each with a prompt of its own."""
    waiting: dict[str, list[Recorded]] = {}
    for _, turn in source.records(Turn):
        one = Recorded(
            at=(turn.timestamp or 0.0) / 1e3,
            pause=(turn.delay or 0.0) / 1e3,
            output_tokens=turn.output_length,
            content=Conversation((_user(turn),)),
        )
        if turn.session_id and turn.timestamp is None:
            waiting.setdefault(turn.session_id, []).append(one)
        else:
            yield (one,)
    yield from (tuple(steps) for steps in waiting.values())


def read_trace(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Lines of one session_id are steps of one session where they have delays instead of times."""
    waiting: dict[str, list[Recorded]] = {}
    said: dict[str, list[Message]] = {}
    for number, line in source.records(Line):
        content: Conversation | Verbatim
        answer = 0
        key = line.session_id or ""
        if line.payload is not None:
            path = "/v1/chat/completions" if "messages" in line.payload else "/v1/completions"
            content = Verbatim(path, msgspec.json.encode(line.payload))
        elif line.messages is not None:
            own = list(chat_messages(line.messages))
            if line.message_mode == "delta" and key:
                history = said.setdefault(key, [])
                history += own
                own = list(history)
                answer = named(f"aiperf/{key}/{len(waiting.get(key, ()))}".encode())
                history.append(Message(Role.ASSISTANT, answer=answer))
            content = Conversation(tuple(own), tools_of(line.tools))
        elif line.text_input is not None:
            content = Conversation((Message(Role.USER, line.text_input),))
        else:
            raise source.wrong(number, "has none of text_input, messages and payload")
        one = Recorded(
            at=(line.timestamp or 0.0) / 1e3,
            pause=(line.delay or 0.0) / 1e3,
            output_tokens=line.output_length,
            content=content,
            answer_id=answer,
        )
        if key and (line.timestamp is None or key not in waiting):
            waiting.setdefault(key, []).append(one)
        else:
            yield (one,)
    yield from (tuple(steps) for steps in waiting.values())


AIPERF_SESSIONS = Format(
    name="aiperf-sessions",
    title="aiperf multi_turn (sessions with delays)",
    kinds=JSON,
    needs=(("turns",),),
    read=read_sessions,
    times=(),
    check=lambda record: isinstance(record["turns"], list) and bool(record["turns"]),
    check_said="turns as a list",
)
AIPERF_TURNS = Format(
    name="aiperf-turns",
    title="aiperf single_turn",
    kinds=JSON,
    needs=(("text", "texts", "image", "images"),),
    read=read_turns,
    times=("timestamp",),
)
AIPERF_TRACE = Format(
    name="aiperf-trace",
    title="aiperf trace with texts (text_input, messages or payload)",
    kinds=JSON,
    needs=(
        ("text_input", "messages", "payload"),
        ("output_length", "timestamp", "delay", "payload"),
    ),
    read=read_trace,
    times=("timestamp",),
)
