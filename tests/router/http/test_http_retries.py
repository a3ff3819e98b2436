"""Failures before the first byte went to the client: another replica, within bounds."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from http_world import (
    CHAT,
    END,
    SSE_HEAD,
    STREAM,
    Connect,
    MakeReplica,
    MakeRouter,
    ScriptedReplica,
    chunk,
    event,
    post,
    sized,
)

from router.fleet.reader import Failure, ReadError

PATH = "/v1/chat/completions"
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}}]))


def fail(replica: ScriptedReplica, how: str) -> None:
    """Fail every request before its answer's head is whole."""
    if how == "close":
        replica.reply_and_close()
    elif how == "reset":
        replica.reply_and_close(reset=True)
    elif how == "mid head":
        replica.reply_and_close(b"HTTP/1.1 200 OK\r\ncontent-")
    elif how == "interim only":
        replica.reply_and_close(b"HTTP/1.1 102 Processing\r\n\r\n")
    else:
        replica.reply(GARBAGE[how])


GARBAGE = {
    "garbage": b"SMTP 220 hello\r\n\r\n",
    "TLS": bytes.fromhex("15030100020228"),
    "bad length": b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
    "both lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nab",
    "folded": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 2\r\n\r\nab",
    "other coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nab",
    "endless head": b"HTTP/1.1 200 OK\r\na: " + b"x" * 100_000,
    "endless interim": b"HTTP/1.1 102 Processing\r\n\r\n" * 4000,
    "two answers": sized(b"one") + sized(b"two"),
    "two answers without a body": b"HTTP/1.1 204 No\r\n\r\n" + sized(b"two"),
    "status 99": b"HTTP/1.1 099 Odd\r\ncontent-length: 0\r\n\r\nmore",
}
BEFORE_HEAD = ["close", "reset", "mid head", "interim only", *GARBAGE]


async def test_nobody_else_to_ask(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1000)
    client = await connect(app)
    for how in BEFORE_HEAD:
        fail(replica, how)
        status, headers, body = await client.ask(post(PATH, CHAT))
        error = json.loads(body)["error"]
        assert (how, status, error["code"]) == (how, 502, 502)
        assert f"127.0.0.1:{replica.port}" in error["message"], how
        assert "connection" not in headers


async def test_another_is_asked(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    bad, good = await replicas(), await replicas()
    app = await router(bad, good, breaker_failures=1000, retry_budget=1.0)
    client = await connect(app)
    for how in BEFORE_HEAD:
        fail(bad, how)
        status, _, body = await client.ask(post(PATH, CHAT))
        assert (how, status, body) == (how, 200, b'{"ok":true}')
    # Round robin comes back to the bad one, since it was the good one's turn.
    assert len(bad.received) == len(good.received) == len(BEFORE_HEAD)
    assert {r.body for r in good.received} == {CHAT}


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_statuses_that_are_retried(
    status: int, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    first, second = await replicas(), await replicas()
    for replica in (first, second):
        replica.reply(sized(b"mine", f"{status} Mine", "Retry-After: 7\r\n"))
    app = await router(first, second, breaker_failures=1000)
    client = await connect(app)
    # Nobody is left: the last one's own answer.
    found, headers, body = await client.ask(post(PATH, CHAT))
    assert (found, headers["retry-after"], body) == (status, "7", b"mine")
    assert len(first.received) == len(second.received) == 1
    second.handler = None
    for _ in range(2):
        found, _, body = await client.ask(post(PATH, CHAT))
        assert (found, body) == (200, b'{"ok":true}')


@pytest.mark.parametrize("status", [400, 429, 500, 501])
async def test_statuses_that_are_not(
    status: int, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    for replica in pair:
        replica.reply(sized(b"mine", f"{status} Mine"))
    client = await connect(await router(*pair))
    assert (await client.ask(post(PATH, CHAT)))[0] == status
    assert sum(len(replica.received) for replica in pair) == 1


async def test_never_the_same_and_not_too_often(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    four = [await replicas() for _ in range(4)]
    for replica in four:
        fail(replica, "close")
    app = await router(*four, retries=2, retry_budget=1.0, breaker_failures=1000)
    client = await connect(app)
    for count in (1, 2, 3):
        status, _, _ = await client.ask(post(PATH, CHAT))
        assert status == 502
        asked = [len(replica.received) for replica in four]
        assert sum(asked) == 3 * count
    assert app.telemetry.retries == 6


async def test_retries_have_a_budget(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    for replica in pair:
        fail(replica, "close")
    app = await router(*pair, retry_budget=0.2, breaker_failures=10_000)
    client = await connect(app)
    for _ in range(100):
        assert (await client.ask(post(PATH, CHAT)))[0] == 502
    # The reserve of 10, and one more for every five requests.
    retried = sum(len(replica.received) for replica in pair) - 100
    assert 10 <= retried <= 10 + 20
    app = await router(*pair, retry_budget=0.0, breaker_failures=10_000)
    client = await connect(app)
    for _ in range(5):
        await client.ask(post(PATH, CHAT))
    assert app.telemetry.retries == 0


async def test_refused_connections(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    bad, good = await replicas(), await replicas()
    app = await router(bad, good, health_interval=1000.0)
    client = await connect(app)
    await bad.stop()
    for _ in range(4):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    # Out after the first one, which was not lost.
    assert app.telemetry.retries == 1
    await good.stop()
    status, _, body = await client.ask(post(PATH, CHAT))
    assert (status, json.loads(body)["error"]["code"]) == (502, 502)
    started = time.monotonic()
    status, headers, body = await client.ask(post(PATH, CHAT))
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(body)["error"]["type"] == "ServiceUnavailableError"
    assert time.monotonic() - started < 1.0
    status, headers, _ = await client.ask(post("/v1/messages", CHAT))
    assert (status, headers["retry-after"]) == (503, "2")


async def test_a_connection_that_does_not_come(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await replicas(), await replicas()
    app = await router(bad, good, connect_timeout=0.05)
    client = await connect(app)
    never = asyncio.Event()
    create = app.gateway.loop.create_connection

    async def slow(factory: object, host: str, port: int, **options: object) -> object:
        if port == bad.port:
            await never.wait()
        return await create(factory, host, port, **options)  # type: ignore[call-overload]

    class Loop:
        create_connection = staticmethod(slow)

        def __getattr__(self, name: str) -> object:
            return getattr(asyncio.get_running_loop(), name)

    monkeypatch.setattr(app.gateway.pools[0], "_loop", Loop())
    for _ in range(2):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert len(good.received) == 2
    assert app.telemetry.attempts == {(f"127.0.0.1:{bad.port}", "timeout_connect"): 2}


async def test_a_stream_that_dies_before_its_first_token_moves(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    # Engines send the head when they accept a request: it must not bind the client to them.
    first, second = await replicas(), await replicas()
    app = await router(first, second)
    first.reply_and_close(SSE_HEAD)
    second.reply(SSE_HEAD, TOKEN, END)
    for _ in range(2):
        client = await connect(app)
        client.send(post(PATH, STREAM))
        status, _, body = await client.answer()
        assert (status, body) == (200, TOKEN + END)
    assert first.received
    assert len(second.received) == 2


async def test_losing_replicas_again_and_again_exhausts_nothing(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    frail, other = await replicas(), await replicas()
    app = await router(frail, other, slow_start=0.0, breaker_cooldown=0.1)
    clients = [await connect(app) for _ in range(80)]
    for _ in range(4):
        while app.fleet.usable != 3 or app.fleet.half_open:
            # A trial closes the breaker of the one that came back.
            assert (await clients[0].ask(post(PATH, CHAT)))[0] == 200
            await asyncio.sleep(0.01)
        frail.hang()
        frail.received.clear()
        for client in clients:
            client.send(post(PATH, CHAT))
        await frail.asked(40)
        await frail.stop()
        assert {(await client.answer())[0] for client in clients} == {200}
        frail.handler = None
        await frail.start()
    assert app.telemetry.retries >= 160


async def test_a_storm_cannot_start(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    for replica in pair:
        fail(replica, "close")
    app = await router(*pair)
    clients = [await connect(app) for _ in range(40)]
    for _ in range(5):
        for client in clients:
            client.send(post(PATH, CHAT))
        for client in clients:
            assert (await client.answer())[0] in (502, 503)
    # Where all fail, each request is one attempt, but for the first few.
    asked = sum(len(replica.received) for replica in pair)
    assert asked <= 200 + 10 + 40


@pytest.mark.usefixtures("quick_sweep")
async def test_a_frozen_replica_whose_health_is_bad_is_left(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, other = await replicas(), await replicas()
    # No probe comes in between that would find the health good again.
    app = await router(frozen, other, health_interval=3600.0)
    monkeypatch.setattr("router.http.timeouts._AWAY_TICKS", 2)
    frozen.hang()
    clients = [await connect(app) for _ in range(4)]
    for client in clients:
        client.send(post(PATH, CHAT))
    await frozen.asked(2)
    app.fleet.members()[0].health.bad(ReadError("frozen", Failure.SLOW), time.monotonic(), True)
    app.fleet._refresh(app.fleet.members()[0])
    assert {(await client.answer())[0] for client in clients} == {200}
