"""Connections to replicas that are kept: stale ones, unasked answers, replicas that left."""

from __future__ import annotations

import asyncio

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    Received,
    post,
    sized,
    until,
)

PATH = "/v1/chat/completions"


async def test_stale_connections_are_replaced_without_blame(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1, retries=0)
    client = await connect(app)

    async def once(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # The next request on this connection is read, and never answered.
        writer.write(sized(b"ok"))
        await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        raise ConnectionAbortedError

    replica.handler = once
    for count in range(1, 4):
        status, _, body = await client.ask(post(PATH, CHAT))
        assert (status, body) == (200, b"ok")
        assert len(replica.received) == count
    assert app.telemetry.attempts == {}
    assert app.fleet.usable == 1


async def test_connections_closed_while_idle(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, retries=0, replica_idle_timeout=1000.0)
    client = await connect(app)
    for end in ("close", "data"):
        replica.handler = None
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
        [pooled] = app.gateway.pools[0]._idle
        for writer in list(replica.open):
            if end == "close":
                writer.close()
            else:
                # What nobody asked for: whose answer would it be?
                writer.write(sized(b"unasked"))
        await until(lambda: pooled.transport.is_closing())  # noqa: B023
        assert (await client.ask(post(PATH, CHAT)))[2] == b'{"ok":true}'
    assert app.telemetry.attempts == {}


@pytest.mark.usefixtures("quick_sweep")
async def test_pooled_connections_are_let_go(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, replica_idle_timeout=0.05, health_interval=1000.0)
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    [pooled] = app.gateway.pools[0]._idle
    await until(pooled.transport.is_closing)
    assert not app.gateway.pools[0]._idle
    app.fleet.remove(replica.url)
    client.close()


async def test_connections_of_a_replica_that_left(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica, other = await replicas(), await replicas()
    replica.reply_in_steps(sized(b"first")[:-1], b"t")
    app = await router(replica, replica_idle_timeout=1000.0)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await replica.asked()
    app.fleet.remove(replica.url)
    app.fleet.add(other.url)
    replica.step()
    assert (await client.answer())[2] == b"first"
    await until(lambda: app.fleet.usable)
    assert (await client.ask(post(PATH, CHAT)))[2] == b'{"ok":true}'
    assert len(other.received) == 1
    # Nobody keeps the old replica's connection.
    await until(lambda: not replica.open)
