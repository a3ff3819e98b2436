"""OpenTelemetry's GenAI spans: what an agent's calls were, from any of the forms they are kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trace_files
from trace_files import LONG, OTLP

from loadgen.workloads import Session, TraceError, make
from loadgen.workloads.content import Conversation, Role
from loadgen.workloads.traces.formats.otel import spans_of
from loadgen.workloads.types import tokens


def played(path: Path, *records: Any) -> list[Session]:
    path.write_text(trace_files.lines(*records))
    return list(make(str(path)).sessions(0))


def flat(span: str, start: int, end: int, trace: str = "t", **more: Any) -> dict[str, Any]:
    """As the console exporters of SDKs write one."""
    usage = {"gen_ai.usage.input_tokens": 100 * start + 100, "gen_ai.usage.output_tokens": 7}
    return {
        "name": "chat",
        "context": {"trace_id": trace, "span_id": span},
        "parent_id": None,
        "start_time": f"2026-03-01T10:00:{start:02d}.000000Z",
        "end_time": f"2026-03-01T10:00:{end:02d}.000000Z",
        "status": {"status_code": "UNSET"},
        "attributes": {"gen_ai.operation.name": "chat", **usage, **more},
    }


def test_an_agents_calls_are_a_session_with_its_tools_pause(tmp_path: Path) -> None:
    (session,) = played(tmp_path / "spans.jsonl", *OTLP)
    first, second = session.steps  # not the engine's span, nor the tool's, nor the agent's
    assert (second.after, second.pause) == ((0,), pytest.approx(3.0))
    assert isinstance(second.content, Conversation)
    asked, called, result = second.content.messages
    assert (asked.role, asked.text) == (Role.USER, LONG + "Which cranes?")
    assert (called.calls[0].name, json.loads(called.calls[0].arguments)) == ("list", {"all": True})
    assert (result.role, result.text, result.call_id) == (Role.TOOL, "A, B", "c1")
    assert (first.output.tokens, second.output.tokens) == (20, 9)
    # What was answered is what the next prompt goes on with.
    assert second.prompt[: len(first.prompt)] == first.prompt
    assert second.prompt[len(first.prompt)].id == first.output.id


def test_spans_and_sessions_a_line_are_the_same(tmp_path: Path) -> None:
    spans = [flat("a", 0, 2), flat("b", 5, 6)]
    by_span = played(tmp_path / "spans", *spans)
    by_session = played(tmp_path / "sessions", {"session_id": "t", "spans": spans})
    assert by_span == by_session
    (session,) = by_span
    assert [tokens(step.prompt) for step in session.steps] == [100, 600]
    assert session.steps[1].pause == 3.0


def test_calls_side_by_side_wait_for_what_had_ended(tmp_path: Path) -> None:
    """1 and 2 fan out after 0; 3 waits for both."""
    spans = [flat("a", 0, 2), flat("c", 3, 6), flat("b", 3, 4), flat("d", 7, 8)]
    (session,) = played(tmp_path / "spans", *spans)
    assert [step.after for step in session.steps] == [(), (0,), (0,), (1, 2)]


def test_failed_and_other_spans_are_left_out(tmp_path: Path) -> None:
    failed = {**flat("a", 0, 1, trace="x"), "status": {"status_code": "ERROR"}}
    embedded = flat("b", 0, 1, trace="y", **{"gen_ai.operation.name": "embeddings"})
    web = {**flat("c", 0, 1, trace="z"), "attributes": {"http.route": "/"}}
    conversation = {"gen_ai.conversation.id": "one"}
    kept = [flat(n, at, at, trace=n, **conversation) for n, at in (("d", 2), ("e", 4))]
    (session,) = played(tmp_path / "spans", failed, embedded, web, *kept)
    assert len(session.steps) == 2


def test_prompts_in_events_and_in_openllmetrys_attributes(tmp_path: Path) -> None:
    told = {"gen_ai.input.messages": json.dumps([{"role": "user", "content": "Hello"}])}
    event = {**flat("a", 0, 1, trace="x"), "events": [{"name": "details", "attributes": told}]}
    indexed = {
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "Be brief.",
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.1.content": json.dumps([{"type": "text", "text": "Hello"}]),
    }
    sessions = played(tmp_path / "spans", event, flat("b", 1, 2, trace="y", **indexed))
    said = []
    for session in sessions:
        content = session.steps[0].content
        assert isinstance(content, Conversation)
        said.append([(message.role, message.text) for message in content.messages])
    assert said == [
        [(Role.USER, "Hello")],
        [(Role.SYSTEM, "Be brief."), (Role.USER, "Hello")],
    ]


def test_spans_of_nothing_else_are_refused_in_words(tmp_path: Path) -> None:
    web = {**flat("c", 0, 1), "attributes": {"http.route": "/"}}
    with pytest.raises(TraceError, match=r"Nearest is OpenTelemetry GenAI.*gen_ai attributes"):
        played(tmp_path / "web", web)
    broken = flat("d", 0, 1)
    del broken["start_time"]
    with pytest.raises(TraceError, match=r"broken line 2: no span of OpenTelemetry.*start_time"):
        played(tmp_path / "broken", flat("a", 0, 1), broken)


def test_values_of_otlp() -> None:
    values = {"arrayValue": {"values": [{"stringValue": "stop"}, {"boolValue": True}]}}
    nested = {"kvlistValue": {"values": [{"key": "n", "value": {"doubleValue": 0.5}}]}}
    span = {"startTimeUnixNano": "1000000000", "endTimeUnixNano": "3000000000"}
    span["attributes"] = [{"key": "a", "value": values}, {"key": "b", "value": nested}]  # type: ignore[assignment]
    (found,) = spans_of({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
    assert (found.start, found.end) == (1.0, 3.0)
    assert found.attributes == {"a": ["stop", True], "b": {"n": 0.5}}
