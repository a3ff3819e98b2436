"""LiteLLM's logs: spend logs (/spend/logs, the database's table) and standard logging payloads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Content, Conversation, Message, Role
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.messages import chat_messages, text_of, value_of
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.segments import tools_of
from loadgen.workloads.traces.source import Source


class Line(msgspec.Struct):
    """One call. Prompts are there only with store_prompts_in_spend_logs."""

    start: str | float = msgspec.field(name="startTime")
    prompt_tokens: Length = 0
    completion_tokens: Length = 0
    status: str | None = None
    session_id: str | None = None
    messages: Any = None
    response: Any = None
    proxy_server_request: Any = None


def read(source: Source, reading: Reading) -> Iterator[Recording]:
    """Failed calls are left out."""
    for number, line in source.records(Line):
        if line.status == "failure" or not (line.prompt_tokens or line.messages):
            continue
        try:
            at = seconds_of(line.start, reading.unit)
        except ValueError as error:
            raise source.wrong(number, f"startTime: {error}") from error
        content = _content(line)
        yield (
            Recorded(
                at=at,
                prompt_tokens=0 if content else line.prompt_tokens,
                output_tokens=line.completion_tokens,
                content=content,
                answer=_answer(value_of(line.response)),
                session=line.session_id or "",
            ),
        )


def _content(line: Line) -> Content | None:
    request = value_of(line.proxy_server_request)
    request = request if isinstance(request, dict) else {}
    request = request.get("body", request)
    messages = value_of(line.messages) or request.get("messages")
    if isinstance(messages, str):
        return Conversation((Message(Role.USER, messages),))
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return None
    return Conversation(chat_messages(messages), tools_of(request.get("tools")))


def _answer(response: Any) -> str | None:
    choices = response.get("choices") if isinstance(response, dict) else None
    if not choices:
        return None
    return text_of((choices[0].get("message") or {}).get("content"))


LITELLM = Format(
    name="litellm",
    title="LiteLLM request log (spend logs, StandardLoggingPayload)",
    kinds=("jsonl", "json list", "csv"),
    needs=(("startTime",), ("prompt_tokens",), ("completion_tokens",)),
    read=read,
    times=("startTime",),
)
