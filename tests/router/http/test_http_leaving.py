"""Clients that vanish at every stage: the replica is told at once, and the books balance.

That they do is checked after every test, by the fixtures.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from http_world import (
    CHAT,
    END,
    SSE_HEAD,
    STREAM,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    chunk,
    event,
    exchanges,
    get,
    post,
    sized,
    until,
)

from router.fleet.reader import IDLE_CONNECTIONS

PATH = "/v1/chat/completions"
EMBED = json.dumps({"model": "m", "input": "hello"}).encode()
LEAVE = pytest.mark.parametrize("leave", [Raw.close, Raw.vanish], ids=["close", "vanish"])


@LEAVE
async def test_before_a_whole_request(
    leave: object, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    for part in (b"", b"GET /x HTT", post(PATH, CHAT)[:60], post(PATH, b"x" * 500_000)[:-1]):
        client = await connect(app)
        client.send(part)
        await asyncio.sleep(0.02)
        leave(client)  # type: ignore[operator]
    await until(lambda: not app.front.clients)
    assert app.gateway.live.body_bytes == 0
    assert replica.received == []


@LEAVE
@pytest.mark.parametrize(
    ("path", "body"), [(PATH, CHAT), (PATH, STREAM), ("/v1/embeddings", EMBED)]
)
async def test_while_waiting(
    leave: object,
    path: str,
    body: bytes,
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
) -> None:
    replica = await replicas()
    replica.hang()
    app = await router(replica)
    client = await connect(app)
    client.send(post(path, body))
    await replica.asked()
    assert app.fleet.loads[0].in_flight == 1
    leave(client)  # type: ignore[operator]
    await replica.left()
    await until(lambda: not app.fleet.loads[0].in_flight)


@LEAVE
@pytest.mark.parametrize(
    ("path", "body"), [(PATH, CHAT), (PATH, STREAM), ("/v1/embeddings", EMBED)]
)
async def test_mid_answer(
    leave: object,
    path: str,
    body: bytes,
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
) -> None:
    replica = await replicas()
    app = await router(replica)
    for answer in (
        SSE_HEAD + chunk(event(a=1)),
        SSE_HEAD + chunk(event(a=1)) + chunk(event(a=1))[:5],
        sized(b"x" * 100)[:-1],
        b"HTTP/1.1 200 OK\r\n\r\nuntil",
    ):
        replica.hang(answer)
        client = await connect(app)
        client.send(post(path, body))
        await client.head()
        leave(client)  # type: ignore[operator]
        await replica.left()
        replica.lost.clear()
    assert app.fleet.usable == 1
    assert app.telemetry.attempts == {}


@LEAVE
async def test_while_connecting(
    leave: object,
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replica = await replicas()
    app = await router(replica)
    connecting, cancelled = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> object:
        connecting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(type(app.gateway.pools[0]), "connect", never)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await connecting.wait()
    leave(client)  # type: ignore[operator]
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert replica.received == []


async def test_at_the_moment_of_connecting(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    """Clients that leave a few turns of the event loop after they asked."""
    replica = await replicas()
    replica.hang()
    app = await router(replica)
    for turns in range(12):
        client = await connect(app)
        [connection] = app.front.clients
        connection.data_received(post(PATH, CHAT))
        for _ in range(turns):
            await asyncio.sleep(0)
        connection.transport.abort()
        await until(lambda: not app.front.clients)
        client.close()
    await until(lambda: not exchanges(app))
    # The router's own reads keep some: health, models, metrics and rest.
    await until(lambda: len(replica.open) <= IDLE_CONNECTIONS)


async def test_with_others_waiting(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.hang()
    app = await router(replica)
    client = await connect(app)
    client.send(post(PATH, CHAT), post(PATH, b"x" * 1000), get("/x"), post(PATH, CHAT)[:-1])
    await replica.asked()
    await until(lambda: app.gateway.live.body_bytes > 1000)
    client.vanish()
    await replica.left()
    assert len(replica.received) == 1


async def test_a_client_that_has_sent_all_it_will(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    """Closed for writing is taken for gone, as by most servers: a client that closes looks the
    same."""
    replica = await replicas()
    replica.hang()
    app = await router(replica)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await replica.asked()
    client.writer.write_eof()
    await replica.left()
    assert await client.rest() == b""


async def test_half_open_trials_are_given_back(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1, breaker_cooldown=0.0)
    replica.reply_and_close()
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 502
    replica.hang()
    for _ in range(3):
        # A trial whose client leaves proves nothing, and the next one may go.
        await until(lambda: app.fleet.half_open)
        client = await connect(app)
        client.send(post(PATH, CHAT))
        await replica.asked(len(replica.received) + 1)
        assert not app.fleet.usable
        client.close()
        await replica.left()
        replica.lost.clear()
    await until(lambda: app.fleet.half_open)
    replica.hang(SSE_HEAD + chunk(b"data: x\n\n"))
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await client.head()
    client.close()
    await replica.left()
    # It did answer.
    await until(lambda: app.fleet.usable)
    assert not app.fleet.half_open


async def test_a_long_answer_of_a_replica_that_has_left_ends_as_any_other(
    router: MakeRouter, connect: Connect, replicas: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.scheduling.placer.RETOUCH_AFTER_S", 0.0)
    replica = await replicas()
    replica.reply_in_steps(SSE_HEAD, chunk(event(choices=[])), END)
    app = await router(replica)
    client = await connect(app)
    message = {"role": "user", "content": "long " * 200}
    asked = {"model": "m", "stream": True, "messages": [message]}
    client.send(post(PATH, json.dumps(asked).encode()))
    await replica.asked(1)
    app.fleet.remove(replica.url)
    for _ in range(2):
        replica.step()
    assert (await client.answer())[0] == 200
    assert app.fleet.loads[0].in_flight == 0
