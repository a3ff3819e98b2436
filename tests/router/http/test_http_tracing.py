from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    chunk,
    event,
    post,
    sized,
    until,
)
from otlp import Collector, attributes, over_grpc, over_http

from router.app import App
from router.tracing.context import parse

PATH = "/v1/chat/completions"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
CAME = f"traceparent: 00-{TRACE}-{SPAN}-01"
SECONDS = 30.0
"""How long a process that starts may take."""


def chat(**fields: object) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    ).encode()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with over_http() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield found


def exporter(app: App) -> int:
    """The exporter's process, once it runs; else 0."""
    assert app.tracer is not None
    process = app.tracer._process
    return process.pid if process is not None and process.returncode is None else 0


async def test_one_trace_from_the_client_to_the_engine(
    collector: Collector, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    replica.reply(
        SSE_HEAD,
        chunk(event(choices=[{"delta": {"content": "a"}}])),
        chunk(event(choices=[], usage=usage)),
        chunk(b"data: [DONE]\n\n"),
        END,
    )
    app = await router(replica, tracing=True, policy="cache_aware")
    await until(lambda: exporter(app), SECONDS)
    client = await connect(app)
    headers = CAME, "tracestate: vendor=1", "x-session-id: my secret session"
    client.send(post(PATH, chat(stream=True), *headers))
    assert (await client.answer())[0] == 200
    await until(lambda: len(collector.spans) == 3, SECONDS)
    (own,) = collector.named("chat m")
    (route,) = collector.named("route")
    (attempt,) = collector.named("attempt")
    # One trace, below the client's span.
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert own.parent_span_id.hex() == SPAN
    assert route.parent_span_id == attempt.parent_span_id == own.span_id
    assert own.start_time_unix_nano <= attempt.start_time_unix_nano <= attempt.end_time_unix_nano
    assert attempt.end_time_unix_nano <= own.end_time_unix_nano + 1_000_000
    # The engine's own spans hang below the attempt.
    (received,) = replica.received
    given = parse((received.header("traceparent") or "").encode())
    assert given is not None
    assert (given.trace_id.decode(), given.span_id.decode()) == (TRACE, attempt.span_id.hex())
    assert given.sampled
    assert received.header("tracestate") == "vendor=1"
    assert [name for name, _ in received.headers].count("traceparent") == 1
    told = attributes(own)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "m"
    assert told["gen_ai.usage.input_tokens"] == 100
    assert told["gen_ai.usage.output_tokens"] == 7
    assert told["gen_ai.usage.cache_read.input_tokens"] == 64
    assert told["http.response.status_code"] == 200
    assert told["warmroute.outcome"] == "ok"
    assert [each.name for each in own.events] == ["first token"]
    assert attributes(route)["warmroute.candidates.replica"] == [
        f"127.0.0.1:{app.fleet.members()[0].port}"
    ]
    assert attributes(attempt)["server.port"] == app.fleet.members()[0].port
    assert collector.services == {"warmroute"}
    # What the client calls its session is its own business.
    assert len(told["gen_ai.conversation.id"]) == 16
    assert not any(b"secret" in span.SerializeToString() for span in collector.spans)


async def test_each_attempt_has_its_span(
    collector: Collector, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    bad, good = await replicas(), await replicas()
    bad.reply(sized(b"{}", "503 Service Unavailable"))
    good.reply(sized(b"{}"))
    app = await router(bad, good, tracing=True)
    await until(lambda: exporter(app), SECONDS)
    client = await connect(app)
    for _ in range(2):
        client.send(post(PATH, chat()))
        assert (await client.answer())[0] == 200
    await until(lambda: len(collector.named("chat m")) == 2, SECONDS)
    attempts = sum(len(replica.received) for replica in (bad, good))
    await until(lambda: len(collector.named("attempt")) == attempts, SECONDS)
    failed = [span for span in collector.named("attempt") if "error.type" in attributes(span)]
    assert {attributes(span)["error.type"] for span in failed} == {"upstream_5xx"}
    assert len(failed) == len(bad.received) >= 1
    # Each began here, and has a trace of its own.
    assert not any(span.parent_span_id for span in collector.named("chat m"))
    assert len({span.trace_id for span in collector.spans}) == 2


async def test_what_the_client_does_not_sample_is_only_passed_on(
    collector: Collector, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica, tracing=True)
    await until(lambda: exporter(app), SECONDS)
    client = await connect(app)
    client.send(post(PATH, chat(), f"traceparent: 00-{TRACE}-{SPAN}-00"))
    await client.answer()
    client.send(post(PATH, chat()))
    await client.answer()
    await until(lambda: len(collector.named("chat")) == 1, SECONDS)
    given = parse((replica.received[0].header("traceparent") or "").encode())
    assert given is not None
    assert given.trace_id.decode() == TRACE
    assert not given.sampled
    assert all(span.trace_id.hex() != TRACE for span in collector.spans)


async def test_an_exporter_that_dies_is_started_again(
    collector: Collector,
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    complaints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.tracing.tracer.FIRST_PAUSE_S", 0.01)
    complaints.append("the exporter of traces ended with status -9")
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica, tracing=True)
    await until(lambda: exporter(app), SECONDS)
    first = exporter(app)
    os.kill(first, signal.SIGKILL)
    await until(lambda: exporter(app) not in (0, first), SECONDS)
    client = await connect(app)
    client.send(post(PATH, chat()))
    assert (await client.answer())[0] == 200
    await until(lambda: collector.named("chat"), SECONDS)
    # It knows the fleet again.
    assert attributes(collector.named("route")[0])["warmroute.replica"]


async def test_without_an_exporter_requests_go_on_and_traces_are_counted_as_lost(
    collector: Collector, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica, tracing=True)
    tracer = app.tracer
    assert tracer is not None
    await until(lambda: exporter(app), SECONDS)
    process, tracer._process = tracer._process, None
    client = await connect(app)
    client.send(post(PATH, chat()))
    assert (await client.answer())[0] == 200
    await until(lambda: tracer.dropped == 1)
    tracer._process = process


async def test_what_is_left_is_sent_when_the_router_stops(
    collector: Collector,
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setattr("router.tracing.tracer.STOP_S", SECONDS)
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica, tracing=True)
    tracer = app.tracer
    assert tracer is not None
    await until(lambda: exporter(app), SECONDS)
    client = await connect(app)
    client.send(post(PATH, chat()))
    await client.answer()
    await tracer.stop()
    assert len(collector.named("chat")) == 1


async def test_over_grpc(
    monkeypatch: pytest.MonkeyPatch, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    with over_grpc() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-7")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        app = await router(replica, tracing=True)
        await until(lambda: exporter(app), SECONDS)
        client = await connect(app)
        client.send(post(PATH, chat(), CAME))
        await client.answer()
        await until(lambda: collector.named("chat m"), SECONDS)
        assert collector.services == {"gateway-7"}


async def test_without_tracing_the_header_passes_as_it_came(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica)
    client = await connect(app)
    client.send(post(PATH, chat(), CAME))
    await client.answer()
    assert replica.received[0].header("traceparent") == f"00-{TRACE}-{SPAN}-01"
