"""Requests sent before the last one was answered: answers come in order, and nothing piles up."""

from __future__ import annotations

import asyncio
import json

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    Received,
    ScriptedReplica,
    get,
    post,
    sized,
    until,
)

PATH = "/v1/chat/completions"


def echo(replica: ScriptedReplica) -> None:
    """Answer with the request's target; a target with "wait" waits for a step."""

    async def handler(
        request: Received, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if "wait" in request.target:
            await replica.gate.acquire()
        writer.write(sized(request.target.encode()))

    replica.handler = handler


async def test_answers_in_order(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    echo(replica)
    app = await router(replica)
    client = await connect(app)
    client.send(
        get("/wait1"), get("/v1/models"), get("/2"), get("/sleep"), get("/wait3"), get("/4")
    )
    await replica.asked()
    # Nothing overtakes the first.
    await asyncio.sleep(0.05)
    assert len(replica.received) == 1
    replica.step()
    replica.step()
    found = [await client.answer() for _ in range(6)]
    assert [status for status, _, _ in found] == [200, 200, 200, 403, 200, 200]
    assert [body for _, _, body in found][::2] == [b"/wait1", b"/2", b"/wait3"]
    assert json.loads(found[1][2])["object"] == "list"


async def test_a_request_that_arrives_as_the_last_is_answered_does_not_overtake(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    echo(replica)
    app = await router(replica)
    client = await connect(app)
    [connection] = app.front.clients
    client.send(get("/wait1"), get("/2"))
    await replica.asked()
    # In the same turn of the event loop: the first answer ends, then a third request arrives.
    exchange = connection.exchange
    assert exchange is not None
    upstream = exchange.upstream
    assert upstream is not None
    upstream.data_received(sized(b"/wait1", extra="connection: close\r\n"))
    connection.data_received(get("/3"))
    assert [(await client.answer())[2] for _ in range(3)] == [b"/wait1", b"/2", b"/3"]
    replica.step()


@pytest.mark.parametrize("first", ["/v1/models", "/wait"])
async def test_a_hundred_local_answers(
    first: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    echo(replica)
    replica.step()
    app = await router(replica)
    client = await connect(app)
    client.send(get(first), get("/v1/models") * 100)
    found = [await client.answer() for _ in range(101)]
    assert all(status == 200 for status, _, _ in found)


async def test_more_than_may_wait(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    echo(replica)
    app = await router(replica)
    client = await connect(app)
    numbers = range(300)
    client.send(get("/wait"))
    await replica.asked()
    for number in numbers:
        client.send(post(f"/{number}", CHAT))
        await asyncio.sleep(0)
    replica.step()
    found = [(await client.answer())[2] for _ in range(301)]
    assert found == [b"/wait", *(f"/{number}".encode() for number in numbers)]


async def test_an_error_in_the_middle(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    echo(replica)
    app = await router(replica)
    client = await connect(app)
    client.send(
        *(get("/wait"), get("/v1/models"), post(PATH, b"{"), get("/2")),
        *(b"BAD /\r\n\r\n", get("/smuggled")),
    )
    await replica.asked()
    replica.step()
    found = [await client.answer() for _ in range(5)]
    assert [status for status, _, _ in found] == [200, 200, 400, 200, 400]
    assert [headers.get("connection") for _, headers, _ in found] == [None] * 4 + ["close"]
    assert await client.rest() == b""
    assert [r.target for r in replica.received] == ["/wait", "/2"]


async def test_nothing_after_close(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    client.send(get("/1"), get("/2", "Connection: close"), get("/3"))
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    assert await client.rest() == b""
    assert [r.target for r in replica.received] == ["/1", "/2"]


async def test_the_replica_ends_the_connection_with_others_waiting(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_and_close(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    app = await router(replica)
    client = await connect(app)
    client.send(get("/1"), post("/2", CHAT), get("/3"))
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (200, "close", b"until the end")
    assert [r.target for r in replica.received] == ["/1"]


async def test_nothing_begins_on_a_connection_that_is_closing(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_in_steps(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"")
    app = await router(replica)
    client = await connect(app)
    [connection] = app.front.clients
    client.send(get("/1"), get("/2"))
    await client.head()
    exchange = connection.exchange
    assert exchange is not None
    upstream = exchange.upstream
    assert upstream is not None
    # The answer ends and with it the connection. Had a part of it still to be sent, its being sent
    # would have brought the next one's turn.
    upstream.connection_lost(None)
    connection._next()
    assert connection.exchange is None
    assert await client.rest() == b"until the end"
    replica.step()
    upstream.transport.abort()
    assert [r.target for r in replica.received] == ["/1"]


async def test_a_flood(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    echo(replica)
    app = await router(replica)
    client = await connect(app)
    client.send(get("/wait"))
    await replica.asked()
    client.send(get("/1") * 20_000)
    replica.step()
    statuses = []
    while True:
        status, headers, _ = await client.answer()
        statuses.append(status)
        if headers.get("connection") == "close":
            break
    assert statuses[-1] == 400
    assert set(statuses[:-1]) == {200}


async def test_a_client_that_asks_and_never_reads(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    # The list of models is made by the router itself: no replica's speed holds it back.
    replica = await replicas(models=tuple(f"model-{n:05}" for n in range(2000)))
    app = await router(replica)
    client = await connect(app)
    client.writer.transport.pause_reading()
    [connection] = app.front.clients
    one = len(app.fleet.models_body())
    most = 0
    client.send(get("/v1/models") * 900)
    await until(lambda: connection.paused)
    for _ in range(100):
        await asyncio.sleep(0.002)
        most = max(most, connection.transport.get_write_buffer_size())
    # What is over the limit is one answer at most.
    assert most < 64 * 1024 + 2 * one
    client.writer.transport.resume_reading()
    for _ in range(900):
        status, _, body = await client.answer()
        assert (status, len(body)) == (200, one)
