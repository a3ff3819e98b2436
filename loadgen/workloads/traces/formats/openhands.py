"""OpenHands' events: its first generation (action and observation) and its SDK's (kind)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Conversation, Message, Role, Tool, ToolCall
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.messages import chat_message, images_of, text_of
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.segments import said_by, tools_of
from loadgen.workloads.traces.source import Kind, Source


class _Run:
    """A conversation put together from events. Mutable state: what was said, and the steps."""

    def __init__(self) -> None:
        self.steps: list[Recorded] = []
        self._said: list[Message] = []
        self._tools: tuple[Tool, ...] = ()
        self._asked = ""
        """The model's answer that the last action was part of."""
        self._answered: float | None = None
        self._last: float | None = None

    def tools(self, given: Any) -> None:
        self._tools = tools_of(given)

    def heard(self, message: Message, at: float | None) -> None:
        """Something that the model did not say."""
        self._said.append(message)
        self._last = at

    def answered(self, message: Message, at: float | None, key: str, tokens: int = 0) -> None:
        """An answer, or more of the one that has this key."""
        if key and key == self._asked:
            before = self._said[-1]
            # Calls of one answer come as events of their own, their results in between.
            place = max(i for i, each in enumerate(self._said) if each.role is Role.ASSISTANT)
            before = self._said[place]
            known = {call.id for call in before.calls}
            more = tuple(call for call in message.calls if call.id not in known)
            self._said[place] = msgspec.structs.replace(before, calls=before.calls + more)
            self._answered = at
            return
        pause = 0.0
        if self._answered is not None and self._last is not None:
            pause = max(0.0, self._last - self._answered)
        if self._said:
            self.steps.append(
                Recorded(
                    content=Conversation(tuple(self._said), self._tools),
                    answer=said_by(message),
                    output_tokens=tokens,
                    pause=pause,
                )
            )
        self._said.append(message)
        self._asked, self._answered = key, at


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A file is one conversation, or has one on each line as its evaluations write them."""
    run = _Run()
    for _, record in source.records(dict[str, Any]):
        history = record.get("history")
        if isinstance(history, list):
            own = _Run()
            _play(own, history)
            if own.steps:
                yield tuple(own.steps)
        else:
            _play(run, (record,))
    if run.steps:
        yield tuple(run.steps)


def _play(run: _Run, events: Iterable[dict[str, Any]]) -> None:
    for event in events:
        stamp = event.get("timestamp")
        at = seconds_of(stamp) if stamp is not None else None
        if "kind" in event:
            _sdk_event(run, event, at)
        else:
            _event(run, event, at)


def _event(run: _Run, event: dict[str, Any], at: float | None) -> None:
    action, args = event.get("action"), event.get("args") or {}
    called = event.get("tool_call_metadata") or {}
    if action == "system":
        run.tools(args.get("tools"))
        run.heard(Message(Role.SYSTEM, text_of(args.get("content"))), at)
    elif action == "message" and event.get("source") == "user":
        run.heard(Message(Role.USER, text_of(args.get("content") or event.get("message"))), at)
    elif action and event.get("source") == "agent":
        response = called.get("model_response") or {}
        choices = response.get("choices") or ()
        if choices:
            message = chat_message({**(choices[0].get("message") or {}), "role": "assistant"})
            usage = response.get("usage") or {}
            tokens = int(usage.get("completion_tokens") or 0)
            run.answered(message, at, str(response.get("id") or ""), tokens)
        elif action == "message":
            run.answered(Message(Role.ASSISTANT, text_of(args.get("content"))), at, "")
    elif event.get("observation") and called.get("tool_call_id"):
        said = text_of(event.get("content"))
        run.heard(Message(Role.TOOL, said, call_id=str(called["tool_call_id"])), at)


def _sdk_event(run: _Run, event: dict[str, Any], at: float | None) -> None:
    kind = event["kind"]
    if kind == "SystemPromptEvent":
        run.tools(event.get("tools"))
        run.heard(Message(Role.SYSTEM, text_of(event.get("system_prompt"))), at)
    elif kind == "MessageEvent":
        given = event.get("llm_message") or {}
        content = given.get("content")
        message = Message(Role.USER, text_of(content), images_of(content))
        if event.get("source") == "agent":
            message = msgspec.structs.replace(message, role=Role.ASSISTANT)
            run.answered(message, at, str(event.get("llm_response_id") or ""))
        else:
            run.heard(message, at)
    elif kind == "ActionEvent":
        call = event.get("tool_call") or {}
        call = call.get("function", call)
        arguments = call.get("arguments")
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments or event.get("action") or {}).decode()
        name = str(event.get("tool_name") or call.get("name") or "tool")
        made = ToolCall(str(event.get("tool_call_id") or ""), name, arguments)
        text = text_of(event.get("thought"))
        key = str(event.get("llm_response_id") or "")
        run.answered(Message(Role.ASSISTANT, text, calls=(made,)), at, key)
    elif kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        said = text_of(event.get("observation")) or str(event.get("error") or "")
        run.heard(Message(Role.TOOL, said, call_id=str(event.get("tool_call_id") or "")), at)


_KINDS: tuple[Kind, ...] = ("json list", "jsonl", "json object")
OPENHANDS = Format(
    name="openhands",
    title="OpenHands trajectory",
    kinds=_KINDS,
    needs=(("source", "history"), ("action", "observation", "history")),
    read=read,
    check=lambda record: "history" not in record or _is_events(record["history"]),
    check_said="history as a list of events",
)
OPENHANDS_SDK = Format(
    name="openhands-sdk",
    title="OpenHands SDK events",
    kinds=_KINDS,
    needs=(("kind",), ("source",)),
    read=read,
    check=lambda record: str(record["kind"]).endswith("Event"),
    check_said="kind ...Event",
)


def _is_events(history: Any) -> bool:
    return isinstance(history, list) and any(
        isinstance(each, dict) and ({"action", "observation", "kind"} & set(each))
        for each in history
    )
