"""The exporter of traces, a process beside the router: python -m router.tracing.exporter

It reads finished requests from its standard input, each behind its length, makes spans of them and
exports them by OpenTelemetry's SDK. Where to, and how, say the SDK's own environment variables:
``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_PROTOCOL`` (``http/protobuf``, or ``grpc``),
``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_BSP_*``.

Names of attributes: https://github.com/open-telemetry/semantic-conventions-genai (in development),
and ``warmroute.*`` for what these do not have.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

from router.telemetry.access_log import session_name
from router.telemetry.record import Finished, Outcome
from router.tracing.trace import Attempt, Message, Names, Secret, Told

_OPERATIONS: Final = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("warmroute")
_OK: Final = Status(StatusCode.UNSET)
_NS: Final = 1e9

Attributes = dict[str, AttributeValue]


class SpanMaker:
    """Makes the spans of finished requests."""

    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self.names: dict[int, str] = {}
        """Slot -> the replica's name."""
        self.secret = b""
        """What sessions' names are made with."""

    def spans(self, told: Told) -> Iterator[ReadableSpan]:
        """The request's own span first, then those below it."""
        record = told.record
        trace_id = int(told.trace_id, 16)
        own = _context(trace_id, told.span_id)
        above = _context(trace_id, told.parent) if told.parent else None
        started = record.started
        ended = started + record.duration
        operation = _OPERATIONS.get(record.api, record.api)
        yield self._span(
            f"{operation} {record.model}".rstrip(),
            own,
            above,
            SpanKind.SERVER,
            started,
            ended,
            self._request(record, operation),
            events=_first_token(record),
            failure="" if record.outcome == Outcome.OK else record.outcome,
        )
        number = int(told.span_id, 16)
        if record.queued >= 0.0:
            attributes: Attributes = {
                "warmroute.queue.where": record.waited_at,
                "warmroute.queue.priority": record.priority,
                "warmroute.queue.ahead": record.queue_ahead,
                "warmroute.queue.expected_seconds": record.queue_expected,
            }
            yield self._below("queue", own, number, 1, started, started + record.queued, attributes)
        first = told.attempts[0].started if told.attempts else ended
        if record.policy:
            yield self._below("route", own, number, 2, first, first, self._decision(record))
        for attempt in told.attempts:
            yield self._attempt(attempt, own, trace_id, ended, record, operation)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        started: float,
        ended: float,
        attributes: Attributes,
        *,
        events: tuple[Event, ...] = (),
        failure: str = "",
    ) -> ReadableSpan:
        if failure:
            attributes["error.type"] = failure
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            events,
            kind=kind,
            status=Status(StatusCode.ERROR, failure) if failure else _OK,
            start_time=int(started * _NS),
            end_time=int(max(ended, started) * _NS),
            instrumentation_scope=_SCOPE,
        )

    def _below(
        self,
        name: str,
        own: SpanContext,
        number: int,
        which: int,
        started: float,
        ended: float,
        attributes: Attributes,
    ) -> ReadableSpan:
        """A part of the router's own work; its id follows from the request's."""
        span_id = (number + which) & (1 << 64) - 1 or 1
        context = SpanContext(own.trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)
        return self._span(name, context, own, SpanKind.INTERNAL, started, ended, attributes)

    def _request(self, record: Finished, operation: str) -> Attributes:
        found: Attributes = {
            "gen_ai.operation.name": operation,
            "http.request.method": record.method,
            "http.response.status_code": record.status,
            "url.path": record.path,
            "warmroute.request_id": record.request_id,
            "warmroute.outcome": record.outcome,
            "warmroute.retries": record.retries,
        }
        if record.model:
            found["gen_ai.request.model"] = record.model
        if record.key:
            found["gen_ai.conversation.id"] = session_name(record.key, self.secret)
        if record.tenant:
            found["warmroute.tenant"] = record.tenant
        if record.prompt_tokens:
            found["gen_ai.usage.input_tokens"] = record.prompt_tokens
            found["gen_ai.usage.output_tokens"] = record.output_tokens
        if record.delivered >= 0:
            found["gen_ai.usage.cache_read.input_tokens"] = record.delivered
        if record.policy:
            found["warmroute.tokens.available"] = int(record.available)
            found["warmroute.tokens.chosen"] = int(record.chosen)
            found["warmroute.tokens.predicted"] = int(record.predicted)
        if record.ttft >= 0.0:
            found["warmroute.ttft_seconds"] = record.ttft
        if record.overhead >= 0.0:
            found["warmroute.overhead_seconds"] = record.overhead
        return found

    def _decision(self, record: Finished) -> Attributes:
        considered = record.considered
        return {
            "warmroute.policy": record.policy,
            "warmroute.reason": record.reason,
            "warmroute.replica": record.replica,
            "warmroute.uncached_tokens": int(record.uncached_tokens),
            "warmroute.candidates.replica": [self.names.get(one[0], "") for one in considered],
            "warmroute.candidates.held_tokens": [int(one[1]) for one in considered],
            "warmroute.candidates.cost": [float(one[2]) for one in considered],
            "warmroute.candidates.queued_tokens": [int(one[3]) for one in considered],
            "warmroute.candidates.in_flight": [int(one[4]) for one in considered],
        }

    def _attempt(
        self,
        attempt: Attempt,
        own: SpanContext,
        trace_id: int,
        ended: float,
        record: Finished,
        operation: str,
    ) -> ReadableSpan:
        host, _, port = attempt.replica.partition("@")[0].partition("/")[0].rpartition(":")
        attributes: Attributes = {
            "gen_ai.operation.name": operation,
            "warmroute.replica": attempt.replica,
            "server.address": host.strip("[]") or attempt.replica,
        }
        if port.isdigit():
            attributes["server.port"] = int(port)
        if record.model:
            attributes["gen_ai.request.model"] = record.model
        failure = attempt.failure
        if not attempt.ended and not failure and record.outcome != Outcome.OK:
            failure = record.outcome
        return self._span(
            f"attempt {attempt.replica}",
            _context(trace_id, attempt.span_id),
            own,
            SpanKind.CLIENT,
            attempt.started,
            attempt.ended or ended,
            attributes,
            failure=failure,
        )


def _context(trace_id: int, span_id: bytes) -> SpanContext:
    return SpanContext(trace_id, int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)


def _first_token(record: Finished) -> tuple[Event, ...]:
    if record.ttft < 0.0:
        return ()
    at = record.started + min(record.ttft, record.duration)
    return (Event("first token", timestamp=int(at * _NS)),)


def make_exporter() -> SpanExporter:
    """As the environment says. Raises ValueError for a protocol that there is not."""
    name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
    protocol = os.environ.get(name) or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    if protocol in ("", "http/protobuf"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter

        return trace_exporter.OTLPSpanExporter()
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; give http/protobuf or grpc")


def frames(source: BinaryIO) -> Iterator[bytes]:
    """The messages of a stream, up to its end."""
    while length := source.read(4):
        size = int.from_bytes(length, "big")
        frame = source.read(size)
        if len(frame) < size:
            return
        yield frame


def main() -> int:
    """Export until the router closes the pipe."""
    # Ctrl-C goes to the router too, which lets what is left be sent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "warmroute")})
    maker = SpanMaker(resource)
    processor = BatchSpanProcessor(make_exporter())
    decode = msgspec.msgpack.Decoder(Message).decode
    for frame in frames(sys.stdin.buffer):
        message = decode(frame)
        if isinstance(message, Names):
            maker.names = message.names
            continue
        if isinstance(message, Secret):
            maker.secret = message.secret
            continue
        for span in maker.spans(message):
            processor.on_end(span)
    processor.shutdown()  # type: ignore[no-untyped-call]  # sends what is left
    return 0


if __name__ == "__main__":
    sys.exit(main())
