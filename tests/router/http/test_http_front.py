"""Coming to rest: what is in progress is finished, and nothing else is waited for."""

from __future__ import annotations

import asyncio
import socket

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    books,
    exchanges,
    get,
    post,
    sized,
    until,
)

from router.admin.parts import Phase

PATH = "/v1/chat/completions"


async def test_what_a_slow_client_has_not_taken_yet_is_not_lost(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    body = b"x" * 25_000
    replica.reply(sized(body))
    app = await router(replica, drain_timeout=30.0)
    client = await connect(app)
    [connection] = app.front.clients
    for transport in (connection.transport, client.writer.transport):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, 2048)
    client.writer.transport.pause_reading()
    client.send(get("/x") * 3)
    await replica.asked()
    await until(lambda: connection.transport.get_write_buffer_size())
    stopping = asyncio.create_task(app.stop())
    await until(lambda: not exchanges(app))
    await asyncio.sleep(0.05)
    assert connection.transport.get_write_buffer_size()
    client.writer.transport.resume_reading()
    assert [(await client.answer())[2] == body for _ in range(3)] == [True] * 3
    await stopping
    assert await client.rest() == b""


async def test_a_request_on_its_way_is_served(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), drain_timeout=30.0)
    idle, begun = await connect(app), await connect(app)
    begun.send(post(PATH, CHAT)[:-5])
    await until(lambda: app.gateway.live.body_bytes)
    stopping = asyncio.create_task(app.stop())
    assert await idle.rest() == b""
    begun.send(post(PATH, CHAT)[-5:])
    status, headers, _ = await begun.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await begun.rest() == b""
    await stopping


async def test_settling(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica)
    idle = await connect(app)
    assert (await idle.ask(post(PATH, CHAT)))[0] == 200
    assert app.phase is Phase.SERVING
    app.settle()
    assert app.phase is Phase.DRAINING
    # Connections that were kept, and new ones, are served; each is told to come no more.
    for client in (idle, await connect(app)):
        for data in (post(PATH, CHAT), get("/v1/models"))[: 1 if client is idle else 2][-1:]:
            status, headers, _ = await client.ask(data)
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""


async def test_answers_begun_before_are_finished(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_in_steps(sized(b"first")[:-1], b"t")
    app = await router(replica, drain_timeout=30.0)
    client = await connect(app)
    client.send(get("/1"), get("/2"))
    await client.head()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0.05)
    replica.step()
    assert await client.reader.readexactly(5) == b"first"
    # What was sent behind it before anybody said anything is answered, too.
    status, headers = await client.head()
    assert (status, headers["connection"]) == (200, "close")
    replica.step()
    assert await client.rest() == b"first"
    await stopping


async def test_hurry(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    replica.hang()
    app = await router(replica, drain_timeout=600.0)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await replica.asked()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    app.front.hurry.set()
    await stopping
    assert await client.rest() == b""
    await replica.left()
    assert not any(books(app).values())


async def test_a_port_that_is_taken(replicas: MakeReplica, router: MakeRouter) -> None:
    replica = await replicas()
    app = await router(replica)
    with pytest.raises(OSError, match=str(app.port)):
        await router(replica, port=app.port)


async def test_health_while_it_serves_and_while_it_stops(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas())
    probes = [get("/health"), get("/ping"), post("/ping", b""), post("/ping", b"{}")]
    for probe in probes:
        status, _, _ = await (await connect(app)).ask(probe)
        assert status == 200
    assert (await (await connect(app)).ask(post("/health", b"")))[0] == 405
    app.settle()
    for probe in probes:
        status, headers, _ = await (await connect(app)).ask(probe)
        assert (status, headers["retry-after"]) == (503, "2")
    # Only probes are told: who comes all the same is served.
    assert (await (await connect(app)).ask(post(PATH, CHAT)))[0] == 200
