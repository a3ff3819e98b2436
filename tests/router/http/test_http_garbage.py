"""Nothing is left for the garbage collector: it is told to come seldom, and would pause streams."""

from __future__ import annotations

import asyncio
import gc

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
    exchanges,
    get,
    post,
    sized,
    until,
)

from router.http.client_connection import ClientConnection
from router.http.exchange import Exchange
from router.http.relay import Relay
from router.http.upstream import UpstreamConnection

PATH = "/v1/chat/completions"
OURS = (ClientConnection, Exchange, Relay, UpstreamConnection)
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}}]))


def uncollected() -> list[str]:
    """The names of our objects that only the collector could free."""
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return [type(found).__name__ for found in gc.garbage if isinstance(found, OURS)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.fixture
def no_collector():  # type: ignore[no-untyped-def]
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> dict[str, int]:
    """How many of our objects there are. Called with the collector off."""
    found = dict.fromkeys((kind.__name__ for kind in OURS), 0)
    for thing in gc.get_objects():
        if isinstance(thing, OURS):
            found[type(thing).__name__] += 1
    return found


@pytest.mark.usefixtures("no_collector")
async def test_whatever_happens(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=100_000, health_interval=1000.0)

    async def ask(data: bytes, *answers: int) -> None:
        client = await connect(app)
        client.send(data)
        for _ in answers:
            await client.answer()
        client.close()

    async def leave(data: bytes) -> None:
        client = await connect(app)
        client.send(data)
        await replica.asked(len(replica.received) + 1)
        client.vanish()
        await until(lambda: not exchanges(app))

    async def everything(replica: ScriptedReplica) -> None:
        replica.handler = None
        await ask(post(PATH, CHAT) * 3 + get("/v1/models") * 3, *range(6))
        await ask(b"BAD\r\n\r\n", 1)
        await ask(get("/x", "Expect: a"), 1)
        await ask(post(PATH, CHAT, "Connection: upgrade", "Upgrade: h2c"), 1)
        replica.reply(SSE_HEAD, TOKEN, chunk(event(choices=[], usage={})), END)
        await ask(post(PATH, STREAM) * 2, 1, 2)
        for answer in (b"", b"garbage\r\n\r\n", SSE_HEAD + TOKEN, sized(b"x" * 9)[:-1]):
            replica.reply_and_close(answer)
            await ask(post(PATH, STREAM))
            await until(lambda: not exchanges(app))
        replica.hang()
        await leave(post(PATH, CHAT))
        replica.hang(SSE_HEAD, TOKEN)
        await leave(post(PATH, STREAM))
        replica.hang(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        await leave(get("/x", "Connection: upgrade", "Upgrade: websocket"))
        app.gateway.pools[0].clear()
        await until(lambda: not app.front.clients)
        await asyncio.sleep(0.05)

    await everything(replica)
    before = alive()
    for _ in range(5):
        await everything(replica)
    assert alive() == before
    assert set(before.values()) == {0}


@pytest.mark.usefixtures("no_collector")
async def test_connections_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, health_interval=1000.0, retries=0)
    await replica.stop()
    client = await connect(app)
    for _ in range(20):
        app.fleet.usable = 1
        assert (await client.ask(post(PATH, CHAT)))[0] == 502
    client.close()
    await until(lambda: not app.front.clients)
    await asyncio.sleep(0.05)
    assert set(alive().values()) == {0}


async def test_many_requests_leave_nothing_to_collect(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, health_interval=1000.0, metrics_interval=1000.0)
    client = await connect(app)
    await client.ask(post(PATH, CHAT))
    assert uncollected() == []
    gc.disable()
    for _ in range(300):
        await client.ask(post(PATH, CHAT))
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    ours = [thing for thing in gc.garbage if type(thing).__module__.startswith("router.")]
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()
    assert ours == []
