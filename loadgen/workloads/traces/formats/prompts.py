"""Prompts with nothing around them: vLLM's custom dataset, and tables with columns that are named
with --columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Conversation, Message, Role
from loadgen.workloads.traces.format import JSON, Format
from loadgen.workloads.traces.messages import chat_messages
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.source import Source

COLUMNS = ("time", "prompt", "messages", "prompt_tokens", "output_tokens", "answer", "session")
"""What --columns may name."""


class Line(msgspec.Struct):
    """vLLM's custom dataset; other fields are not looked at."""

    prompt: str | list[dict[str, Any]]
    output_tokens: Length = 0
    output_tokens_count: Length = 0
    """As guidellm has it."""


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Each line is a session of one request."""
    for _, line in source.records(Line):
        yield (
            Recorded(
                content=_conversation(line.prompt),
                output_tokens=line.output_tokens or line.output_tokens_count,
            ),
        )


def _conversation(prompt: str | list[dict[str, Any]]) -> Conversation:
    if isinstance(prompt, str):
        return Conversation((Message(Role.USER, prompt),))
    return Conversation(chat_messages(prompt))


def read_columns(source: Source, reading: Reading) -> Iterator[Recording]:
    """As the columns say."""
    columns = reading.columns
    for number, record in source.records(dict[str, Any]):
        told = {what: record.get(name) for what, name in columns.items()}
        try:
            yield (_told(told, reading),)
        except (ValueError, TypeError) as error:
            raise source.wrong(number, str(error)) from error


def _told(told: dict[str, Any], reading: Reading) -> Recorded:
    content = None
    messages = told.get("messages")
    if isinstance(messages, str):
        messages = msgspec.json.decode(messages)
    if messages or told.get("prompt"):
        content = _conversation(messages or str(told["prompt"]))
    tokens = _count(told, "prompt_tokens")
    if content is None and not tokens:
        raise ValueError("has neither a prompt nor prompt_tokens")
    time, answer, session = told.get("time"), told.get("answer"), told.get("session")
    return Recorded(
        at=seconds_of(time, reading.unit) if time is not None else 0.0,
        prompt_tokens=0 if content else tokens,
        output_tokens=_count(told, "output_tokens"),
        content=content,
        answer=str(answer) if answer is not None else None,
        session=str(session or ""),
    )


def _count(told: dict[str, Any], name: str) -> int:
    value = told.get(name)
    if value is None:
        return 0
    count = int(float(value))
    if count < 0:
        raise ValueError(f"{name} is {value}, which is below 0")
    return msgspec.convert(count, Length)


CUSTOM = Format(
    name="custom",
    title="vLLM custom jsonl (a prompt a line), or a csv with the same columns",
    kinds=(*JSON, "csv"),
    needs=(("prompt",),),
    read=read,
    check=lambda record: isinstance(record["prompt"], str | list),
    check_said="prompt as a text or messages",
)


def by_columns(columns: dict[str, str]) -> Format:
    """A table whose columns were named. Raises ValueError for what no column can be."""
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"--columns {unknown[0]}: use {', '.join(COLUMNS)}")
    if not {"prompt", "messages", "prompt_tokens"} & set(columns):
        raise ValueError("--columns: name prompt, messages or prompt_tokens")
    return Format(
        name="columns",
        title="the columns of --columns",
        kinds=("jsonl", "json list", "csv"),
        needs=tuple((name,) for name in columns.values()),
        read=read_columns,
        times=(columns["time"],) if "time" in columns else (),
    )
