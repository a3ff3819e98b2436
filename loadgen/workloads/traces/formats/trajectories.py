"""Recorded runs of coding agents that are one conversation: SWE-agent and mini-swe-agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Conversation, Message, Role
from loadgen.workloads.traces.format import Format, list_of
from loadgen.workloads.traces.messages import chat_message, chat_messages, role_of
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.segments import said_by, tools_of
from loadgen.workloads.traces.source import Source


class SweStep(msgspec.Struct):
    """One turn of SWE-agent. query is what the model was asked (messages before version 1.1)."""

    response: str = ""
    execution_time: float = 0.0
    query: list[dict[str, Any]] | None = None
    messages: list[dict[str, Any]] | None = None


class SweAgent(msgspec.Struct):
    """A .traj file."""

    trajectory: list[SweStep]
    history: list[dict[str, Any]] = []


def read_swe(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Tool pauses are the execution times."""
    for _, run in source.records(SweAgent):
        steps: list[Recorded] = []
        pause = 0.0
        for step in run.trajectory:
            asked = step.query or step.messages
            if asked:
                content = Conversation(chat_messages(asked))
                steps.append(Recorded(content=content, answer=step.response, pause=pause))
            pause = step.execution_time
        if not steps:
            steps = list(conversation_steps(chat_messages(run.history)))
        if steps:
            yield tuple(steps)


class MiniRun(msgspec.Struct):
    """A mini-swe-agent trajectory: messages with what else was known of each."""

    messages: list[dict[str, Any]]


def read_mini(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A step for each answer; the tool took from the answer to its output's time stamp."""
    for _, run in source.records(MiniRun):
        kept = [each for each in run.messages if each.get("role") != "exit"]
        steps = conversation_steps(chat_messages(kept), [_mini_time(each) for each in kept])
        tokens = [
            _mini_tokens(each) for each in kept if role_of(each.get("role")) is Role.ASSISTANT
        ]
        recording = tuple(
            msgspec.structs.replace(step, output_tokens=count)
            for step, count in zip(steps, tokens, strict=False)
        )
        if recording:
            yield recording


def _mini_time(message: dict[str, Any]) -> float | None:
    # Version 1 has it in the message itself.
    stamp = (message.get("extra") or {}).get("timestamp", message.get("timestamp"))
    return seconds_of(stamp) if stamp is not None else None


def _mini_tokens(message: dict[str, Any]) -> int:
    response = (message.get("extra") or {}).get("response") or {}
    return int((response.get("usage") or {}).get("completion_tokens") or 0)


def conversation_steps(
    messages: tuple[Message, ...], times: list[float | None] | None = None
) -> Iterator[Recorded]:
    """A step for each answer of a conversation. times: when each message was there; a step's pause
    is from the answer before it to the last message it adds."""
    before: float | None = None
    for place, message in enumerate(messages):
        if message.role is not Role.ASSISTANT or not place:
            continue
        last = times[place - 1] if times else None
        pause = max(0.0, last - before) if last is not None and before is not None else 0.0
        yield Recorded(content=Conversation(messages[:place]), answer=said_by(message), pause=pause)
        before = times[place] if times else None


class ChatLine(msgspec.Struct):
    """A conversation as fine-tuning files have it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def read_chat(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A conversation that ends with a question is one request, another a step for each answer."""
    for _, line in source.records(ChatLine):
        messages = tuple(chat_message(each) for each in line.messages)
        tools = tools_of(line.tools)
        steps = [
            msgspec.structs.replace(step, content=Conversation(step.content.messages, tools))
            for step in conversation_steps(messages)
            if isinstance(step.content, Conversation)
        ]
        if messages and messages[-1].role is not Role.ASSISTANT:
            steps.append(Recorded(content=Conversation(messages, tools)))
        if steps:
            yield tuple(steps)


SWE_AGENT = Format(
    name="swe-agent",
    title="SWE-agent trajectory (.traj)",
    kinds=("json object", "jsonl", "json list"),
    needs=(("trajectory",),),
    read=read_swe,
    check=lambda record: list_of(record["trajectory"], "response"),
    check_said="response in each of trajectory",
)
MINI_SWE_AGENT = Format(
    name="mini-swe-agent",
    title="mini-swe-agent trajectory",
    kinds=("json object", "jsonl", "json list"),
    needs=(("trajectory_format",), ("messages",)),
    read=read_mini,
    check=lambda record: str(record["trajectory_format"]).startswith("mini-swe-agent"),
    check_said="trajectory_format mini-swe-agent-...",
)
CHAT = Format(
    name="chat",
    title="conversations with messages (chat fine-tuning jsonl)",
    kinds=("jsonl", "json list", "json object"),
    needs=(("messages",),),
    read=read_chat,
    check=lambda record: list_of(record["messages"], "role"),
    check_said="role in each of messages",
)
