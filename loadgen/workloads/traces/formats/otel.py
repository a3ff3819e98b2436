"""OpenTelemetry spans with the GenAI attributes, in the three forms that programs leave them in.

OTLP as JSON, an export a line or a file (the collector's file exporter): resourceSpans, times in
nanoseconds, attributes as lists of keys and values. Spans as JSON, one a line (SDKs' console
exporters, guidellm's span-per-line files): attributes as an object, times as ISO 8601. Sessions,
one a line, with such spans in `spans` (guidellm's, published data sets).

A session is a gen_ai.conversation.id, or else session.id, or else a trace. A call waits for those
that had ended when it began; the time from the last of their ends is its pause. Lengths are those
of gen_ai.usage; prompts are there where the program was told to record them: gen_ai.input.messages
(on the span or in its event), or OpenLLMetry's gen_ai.prompt.N.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from loadgen.workloads.content import Content, Conversation, Message, Role, ToolCall
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.messages import chat_message, images_of, role_of, text_of, value_of
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.segments import tools_of
from loadgen.workloads.traces.source import Source

_CALLS = frozenset(("chat", "generate_content", "text_completion", "generate"))
_OTHERS = frozenset(("embeddings", "execute_tool", "invoke_agent", "create_agent", "retrieval"))
_FAILED = (2, "2", "ERROR", "STATUS_CODE_ERROR")
_INPUT = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_OUTPUT = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_SESSION = ("gen_ai.conversation.id", "session.id")
_SESSIONS = 10_000
"""Sessions that are held until their last span is read: spans are written when they end."""
_PARENTS = 1_000_000
"""Spans whose parent is remembered."""
_MOST_UP = 64
"""Spans that are gone up through."""


class Span(msgspec.Struct):
    """One, from any of the forms."""

    id: str
    parent: str
    trace: str
    start: float
    end: float
    """Seconds."""
    failed: bool
    attributes: dict[str, Any]

    @property
    def is_call(self) -> bool:
        """It is a request to a model that ended well, and says how long it was."""
        operation = self.attributes.get("gen_ai.operation.name")
        if self.failed or operation in _OTHERS:
            return False
        told = bool(self.number(_INPUT)) or _has_prompt(self.attributes)
        return told and (operation in _CALLS or operation is None)

    def number(self, names: Iterable[str]) -> int:
        """The first of these attributes that is a number; 0 without one."""
        for name in names:
            value = self.attributes.get(name)
            if value is not None:
                return int(value)
        return 0


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Failed calls are left out, and calls within a call, as of a client, a gateway and an engine
    that all write spans: the outermost one counts."""
    held: OrderedDict[str, list[Span]] = OrderedDict()
    parents: OrderedDict[str, str] = OrderedDict()
    calls: OrderedDict[str, None] = OrderedDict()
    for number, record in source.records(dict[str, Any]):
        try:
            spans = list(spans_of(record))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise source.wrong(number, f"no span of OpenTelemetry: {error}") from error
        for span in spans:
            _remember(parents, span.id, span.parent)
            if not span.is_call:
                continue
            _remember(calls, span.id, None)
            session = next(
                (str(span.attributes[n]) for n in _SESSION if span.attributes.get(n)), span.trace
            )
            held.setdefault(session or span.id, []).append(span)
            held.move_to_end(session or span.id)
            if len(held) > _SESSIONS:
                yield from _session(held.popitem(last=False)[1], parents, calls)
    for own in held.values():
        yield from _session(own, parents, calls)


def _remember(known: OrderedDict[str, Any], span: str, value: Any) -> None:
    if span:
        known[span] = value
        if len(known) > _PARENTS:
            known.popitem(last=False)


def spans_of(record: dict[str, Any]) -> Iterator[Span]:
    """Of a record of any of the forms. Raises ValueError, TypeError, AttributeError, KeyError."""
    if "resourceSpans" in record:
        for resource in record["resourceSpans"] or ():
            for scope in resource.get("scopeSpans") or ():
                yield from map(_of_otlp, scope.get("spans") or ())
    elif isinstance(record.get("spans"), list):
        name = str(record.get("session_id") or record.get("trace_id") or "")
        for given in record["spans"]:
            span = _of_object(given)
            span.trace = span.trace or name
            yield span
    else:
        yield _of_object(record)


def _of_otlp(given: dict[str, Any]) -> Span:
    attributes = _values(given.get("attributes"))
    for event in given.get("events") or ():
        attributes |= _of_event(_values(event.get("attributes")))
    start = seconds_of(given["startTimeUnixNano"], "ns")
    return Span(
        id=str(given.get("spanId") or ""),
        parent=str(given.get("parentSpanId") or ""),
        trace=str(given.get("traceId") or ""),
        start=start,
        end=seconds_of(given.get("endTimeUnixNano") or 0, "ns") or start,
        failed=(given.get("status") or {}).get("code") in _FAILED,
        attributes=attributes,
    )


def _of_object(given: dict[str, Any]) -> Span:
    context = given.get("context") or {}
    attributes = dict(given.get("attributes") or {})
    for event in given.get("events") or ():
        attributes |= _of_event(event.get("attributes") or {})
    status = given.get("status")
    code = (status.get("code") or status.get("status_code")) if isinstance(status, dict) else status
    start = seconds_of(given["start_time"])
    return Span(
        id=str(given.get("span_id") or context.get("span_id") or ""),
        parent=str(given.get("parent_span_id") or given.get("parent_id") or ""),
        trace=str(given.get("trace_id") or context.get("trace_id") or ""),
        start=start,
        end=seconds_of(given["end_time"]) if given.get("end_time") else start,
        failed=code in _FAILED,
        attributes=attributes,
    )


def _of_event(attributes: dict[str, Any]) -> dict[str, Any]:
    """What an event tells of the call."""
    return {name: value for name, value in attributes.items() if name.startswith("gen_ai.")}


def _values(listed: Any) -> dict[str, Any]:
    """OTLP's keys and values as an object."""
    return {each["key"]: _value(each.get("value")) for each in listed or ()}


def _value(given: Any) -> Any:
    if not isinstance(given, dict) or not given:
        return None
    kind, value = next(iter(given.items()))
    if kind == "arrayValue":
        return [_value(each) for each in value.get("values") or ()]
    if kind == "kvlistValue":
        return _values(value.get("values"))
    return int(value) if kind == "intValue" else value


def _session(
    spans: list[Span], parents: OrderedDict[str, str], calls: OrderedDict[str, None]
) -> Iterator[Recording]:
    own = sorted(
        (span for span in spans if not _within(span, parents, calls)), key=lambda span: span.start
    )
    steps = []
    for place, span in enumerate(own):
        ended = [k for k in range(place) if own[k].end <= span.start]
        last = max((own[k].end for k in ended), default=own[0].start)
        content = _content(span.attributes)
        steps.append(
            Recorded(
                at=span.start,
                pause=span.start - last,
                waits=tuple(k for k in ended if not _covered(own, k, ended)),
                prompt_tokens=0 if content else span.number(_INPUT),
                output_tokens=span.number(_OUTPUT),
                content=content,
                answer=_answer(span.attributes),
            )
        )
    if steps:
        yield tuple(steps)


def _covered(own: list[Span], early: int, ended: list[int]) -> bool:
    """Another one that had ended began after this one's end: to wait for that is enough."""
    return any(own[later].start >= own[early].end for later in ended if later > early)


def _within(span: Span, parents: OrderedDict[str, str], calls: OrderedDict[str, None]) -> bool:
    above = span.parent
    for _ in range(_MOST_UP):
        if not above:
            return False
        if above in calls:
            return True
        above = parents.get(above, "")
    return False


def _has_prompt(attributes: dict[str, Any]) -> bool:
    return "gen_ai.input.messages" in attributes or "gen_ai.prompt.0.role" in attributes


def _content(attributes: dict[str, Any]) -> Content | None:
    said = [
        Message(Role.SYSTEM, text_of(value_of(attributes[name])))
        for name in ("gen_ai.system_instructions",)
        if attributes.get(name)
    ]
    given = value_of(attributes.get("gen_ai.input.messages"))
    if isinstance(given, list):
        said += [message for each in given for message in _messages(each)]
    else:
        said += map(chat_message, _indexed(attributes, "gen_ai.prompt"))
    if not any(message.role is not Role.SYSTEM for message in said):
        return None
    tools = value_of(attributes.get("gen_ai.tool.definitions"))
    return Conversation(tuple(said), tools_of(tools if isinstance(tools, list) else None))


def _indexed(attributes: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """OpenLLMetry's: each field of each message an attribute of its own."""
    found: list[dict[str, Any]] = []
    while f"{name}.{len(found)}.role" in attributes:
        before = f"{name}.{len(found)}."
        message = {
            field: attributes.get(before + field) for field in ("role", "content", "tool_call_id")
        }
        message["content"] = value_of(message["content"])
        found.append(message)
    return found


def _messages(given: Any) -> list[Message]:
    """One of gen_ai.input.messages; results of tools in it are messages of their own."""
    if not isinstance(given, dict):
        raise ValueError(f"gen_ai.input.messages: {given!r} is no message")
    parts = given.get("parts")
    if not isinstance(parts, list):
        return [chat_message(given)]
    texts: list[str] = []
    images = list(images_of(parts))
    results, calls = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else ""
        if kind == "tool_call":
            calls.append(
                ToolCall(
                    str(part.get("id") or ""),
                    str(part.get("name") or ""),
                    _text(part.get("arguments") or {}),
                )
            )
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result", ""))
            results.append(Message(Role.TOOL, _text(result), call_id=str(part.get("id") or "")))
        elif kind in ("uri", "blob"):
            images.append(_url(part))
        elif kind != "reasoning":  # thinking is not part of later prompts
            texts.append(text_of(part))
    if not (texts or calls or images):
        return results
    return [
        Message(role_of(given.get("role")), "".join(texts), tuple(images), tuple(calls)),
        *results,
    ]


def _url(part: dict[str, Any]) -> str:
    """Of a part that is an image or the like, inline or elsewhere."""
    if "uri" in part:
        return str(part["uri"])
    return f"data:{part.get('mime_type')};base64,{part.get('content')}"


def _answer(attributes: dict[str, Any]) -> str | None:
    given = value_of(attributes.get("gen_ai.output.messages"))
    if not isinstance(given, list):
        given = _indexed(attributes, "gen_ai.completion")
    if not given:
        return None
    said = _messages(given[0])
    if not said:
        return None
    first = said[0]
    return first.text + "".join(f"{call.name}{call.arguments}" for call in first.calls)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _told(record: dict[str, Any]) -> bool:
    """A sign that spans are of models."""
    try:
        return any(
            name.startswith("gen_ai.") for span in spans_of(record) for name in span.attributes
        )
    except (ValueError, TypeError, AttributeError, KeyError):
        return False


OTEL = Format(
    name="otel",
    title="OpenTelemetry GenAI spans (OTLP json, span or session per line)",
    kinds=("jsonl", "json list", "json object"),
    needs=(("resourceSpans", "spans", "attributes"),),
    read=read,
    times=("resourceSpans", "spans", "start_time"),
    check=_told,
    check_said="gen_ai attributes in its spans",
)
