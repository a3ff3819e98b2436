"""Requests to switch protocols: WebSocket is tunnelled, everything else goes on as HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest
import websockets
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    Received,
    exchanges,
    get,
    post,
    sized,
    until,
)
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection, serve

from router.http.state import State

ASK = get("/v1/realtime", "Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Key: k")
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: a\r\n\r\n"
)


async def test_websocket(replicas: MakeReplica, router: MakeRouter) -> None:
    closed = asyncio.Event()

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)
        closed.set()

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        replica = await replicas()
        app = await router(replica)
        # Its health is asked of the scripted replica; tunnels go to the real WebSocket server.
        app.fleet.replicas[0].port = port  # type: ignore[union-attr]
        url = f"ws://127.0.0.1:{app.port}/v1/realtime?model=m"
        async with ws_connect(url, max_size=None) as client:
            for message in ("hello", b"\0\xff" * 10, "x" * 3_000_000):
                await client.send(message)
                assert await client.recv() == message
            assert client.request is not None
            assert len(exchanges(app)) == 1
        async with asyncio.timeout(5):
            await closed.wait()
        await until(lambda: not exchanges(app))
        # The server goes away first.
        async with ws_connect(url) as client:
            await client.send("hello")
            await client.recv()
            for connection in list(server.connections):
                await connection.close()
            with pytest.raises(websockets.ConnectionClosed):
                await client.recv()


async def test_bytes_before_and_with_the_switch(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    got = bytearray()

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await replica.gate.acquire()
        writer.write(AGREED + b"first words")
        while data := await reader.read(1000):
            got.extend(data)
        writer.close()
        raise ConnectionAbortedError

    replica.handler = handler
    app = await router(replica)
    client = await connect(app)
    client.send(ASK + b"\x81\x05early")
    await replica.asked()
    client.send(b"\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.02)
    assert len(replica.received) == 1
    replica.step()
    status, headers = await client.head()
    assert (status, headers["upgrade"].lower()) == (101, "websocket")
    assert headers["sec-websocket-accept"] == "a"
    assert await client.reader.readexactly(11) == b"first words"
    client.send(b"late")
    await until(lambda: got.endswith(b"late"))
    assert got == b"\x81\x05early\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\nlate"
    asked = replica.received[0]
    assert (asked.header("connection"), asked.header("upgrade")) == ("upgrade", "WebSocket")


async def test_a_refused_switch_ends_the_connection(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"no", "403 Forbidden"))
    app = await router(replica)
    client = await connect(app)
    client.send(ASK + get("/smuggled"))
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (403, "close", b"no")
    assert await client.rest() == b""
    assert [r.target for r in replica.received] == ["/v1/realtime"]


async def test_a_switch_behind_another_request(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if request.target == "/first":
            await replica.gate.acquire()
            writer.write(sized(b"first"))
        else:
            writer.write(AGREED)
            writer.write(await reader.readexactly(5))

    replica.handler = handler
    app = await router(replica)
    client = await connect(app)
    client.send(get("/first"), ASK, b"early")
    await replica.asked()
    replica.step()
    assert (await client.answer())[2] == b"first"
    assert (await client.head())[0] == 101
    assert await client.reader.readexactly(5) == b"early"


async def test_h2c_is_ignored(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica, explain_headers=True)
    client = await connect(app)
    asking = ("Connection: Upgrade, HTTP2-Settings, X-Hop", "Upgrade: h2c", "HTTP2-Settings: AAM")
    more = ("X-Hop: 1", "X-Request-Id: mine", "X-Warmroute-Explain: 1", "A: b")
    for _ in range(2):
        status, headers, _ = await client.ask(post("/v1/chat/completions", CHAT, *asking, *more))
        assert (status, headers["x-request-id"]) == (200, "mine")
        assert "x-warmroute-replica" in headers
    request = replica.received[-1]
    assert request.body == CHAT
    assert {name.lower() for name, _ in request.headers} == {
        *("host", "a", "via", "content-length", "x-request-id")
    }
    # In pieces, chunked, waiting for 100, and the connection's last.
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\n"
        b"Upgrade: h2c\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    for at in range(0, len(head), 10):
        client.send(head[at : at + 10])
        await asyncio.sleep(0)
    assert await client.head() == (100, {})
    client.send(b"%x\r\n%b\r\n0\r\nT: x\r\n\r\n" % (len(CHAT), CHAT))
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await client.rest() == b""
    assert replica.received[-1].body == CHAT


async def test_upgrades_that_are_none(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    # Without Connection: upgrade it asks for nothing.
    client.send(get("/1", "Upgrade: websocket"), get("/2"))
    assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
    # HTTP/1.0 has no upgrades.
    old = b"GET /3 HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n"
    _, headers, _ = await client.ask(old)
    assert headers["connection"] == "keep-alive"
    assert [r.header("upgrade") for r in replica.received] == [None] * 3
    # A replica that switches though nobody asked.
    replica.reply(AGREED)
    status, _, body = await client.ask(get("/4"))
    assert status == 502
    assert "unasked" in json.loads(body)["error"]["message"]
    # A switch without saying to what.
    replica.reply(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    assert (await client.ask(ASK))[0] == 502


async def test_one_side_is_slow(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    sent = 0

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal sent
        writer.write(AGREED)
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000
        writer.close()

    replica.handler = handler
    app = await router(replica)
    client = await connect(app)
    client.send(ASK)
    assert (await client.head())[0] == 101
    client.writer.transport.pause_reading()
    # All buffers on the way are full: nothing moves any more.
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 50_000_000
    [connection] = app.front.clients
    assert connection.transport.get_write_buffer_size() < 1_000_000
    client.writer.transport.resume_reading()
    assert len(await client.rest()) == 100_000_000


async def test_the_client_leaves(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.hang(AGREED)
    app = await router(replica)
    for leave in ("close", "vanish"):
        client = await connect(app)
        client.send(ASK)
        assert (await client.head())[0] == 101
        getattr(client, leave)()
        await replica.left()
        replica.lost.clear()


async def test_the_client_leaves_and_the_replica_does_not_read(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.http.tunnel._FLUSH_S", 0.2)
    replica = await replicas()

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(AGREED)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await replica.gate.acquire()

    replica.handler = handler
    app = await router(replica)
    client = await connect(app)
    client.send(ASK)
    assert (await client.head())[0] == 101
    [exchange] = exchanges(app)
    upstream = exchange.upstream
    assert upstream is not None
    while not upstream.transport.get_write_buffer_size():
        client.send(b"x" * 100_000)
        await asyncio.sleep(0)
    client.vanish()
    await until(lambda: exchange.state is State.OVER)
    replica.step()


async def test_the_replica_dies(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_and_close(AGREED, b"last words", reset=False)
    app = await router(replica)
    client = await connect(app)
    client.send(ASK)
    assert (await client.head())[0] == 101
    assert await client.rest() == b"last words"


@pytest.mark.parametrize("count", [493, 900])
async def test_many_ignored_upgrades_in_one_read(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, count: int
) -> None:
    app = await router(await replicas())
    client = await connect(app)
    one = get("/health", "Connection: upgrade", "Upgrade: h2c")
    client.send(one * count + get("/v1/models"))
    for _ in range(count):
        status, _, _ = await client.answer()
        assert status == 200
    status, _, body = await client.answer()
    assert (status, json.loads(body)["object"]) == (200, "list")


@pytest.mark.usefixtures("quick_sweep")
async def test_a_silent_tunnel_is_closed(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    left = asyncio.Event()

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(AGREED)
        while data := await reader.read(1000):
            writer.write(data)
        left.set()
        writer.close()
        raise ConnectionAbortedError

    replica.handler = handler
    app = await router(replica, tunnel_idle_timeout=0.4)
    client = await connect(app)
    client.send(ASK)
    assert (await client.head())[0] == 101
    # What passes keeps it open, for longer than the limit.
    for _ in range(20):
        client.send(b"x")
        assert await client.reader.readexactly(1) == b"x"
        await asyncio.sleep(0.04)
    # As a client or an engine that vanished, or a connection that a firewall has forgotten.
    with contextlib.suppress(ConnectionError):
        assert await client.rest() == b""
    async with asyncio.timeout(5):
        await left.wait()
    await until(lambda: not exchanges(app))


async def test_the_kernel_looks_after_connections(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    left = asyncio.Event()

    async def silent(
        _request: Received, _reader: asyncio.StreamReader, _writer: asyncio.StreamWriter
    ) -> None:
        await left.wait()

    replica = await replicas(handler=silent)
    app = await router(replica)
    client = await connect(app)
    client.send(ASK)
    await replica.asked()
    [connection] = app.front.clients
    [exchange] = exchanges(app)
    assert exchange.upstream is not None
    for transport in (connection.transport, exchange.upstream.transport):
        assert transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    left.set()
    client.vanish()
