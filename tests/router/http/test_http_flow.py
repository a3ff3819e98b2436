"""Flow control, and many streams at once."""

from __future__ import annotations

import asyncio
import hashlib
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
    Received,
    chunk,
    event,
    exchanges,
    get,
    post,
    unchunked,
    until,
)

PATH = "/v1/chat/completions"


async def test_a_slow_client_slows_its_replica(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    sent = 0
    piece = chunk(b"x" * 50_000)

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2000):
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        writer.write(END)

    replica.handler = handler
    app = await router(replica)
    client = await connect(app)
    client.send(get("/x"))
    await client.head()
    client.writer.transport.pause_reading()
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.1)
    [exchange] = exchanges(app)
    assert exchange.paused
    assert exchange.client.transport.get_write_buffer_size() < 400_000
    # Kernels hold some megabytes on loopback; the answer is 100.
    assert sent < 50_000_000
    client.writer.transport.resume_reading()
    whole = piece * 2000 + END
    async with asyncio.timeout(30):
        assert await client.reader.readexactly(len(whole)) == whole


async def test_stalled_streams_hold_little(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    count = 200
    replica = await replicas()
    token = chunk(event(choices=[{"delta": {"content": "x" * 500}}]))

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.transport.set_write_buffer_limits(high=0)
        writer.write(SSE_HEAD)
        while not replica.lost.is_set():
            writer.write(token)
            await writer.drain()
            await asyncio.sleep(0)

    replica.handler = handler
    app = await router(replica)
    # What the router holds, not the kernels: their buffers are made small.
    clients = [await connect(app) for _ in range(count)]
    for connection in app.front.clients:
        small(connection.transport)
    for client in clients:
        small(client.writer.transport)
        client.send(post(PATH, STREAM))
    await until(lambda: len(exchanges(app)) == count)
    for client in clients:
        client.writer.transport.pause_reading()
    await until(lambda: all(exchange.paused for exchange in exchanges(app)), 30)
    held = [e.client.transport.get_write_buffer_size() for e in exchanges(app)]
    assert sum(held) / count < 48 * 1024
    for client in clients:
        client.vanish()
    replica.lost.set()


def small(transport: asyncio.WriteTransport) -> None:
    import socket

    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


@pytest.mark.usefixtures("quick_sweep")
async def test_a_client_that_stops_reading_is_let_go(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.hang(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 30_000_000)
    app = await router(replica, chunk_timeout=0.2)
    client = await connect(app)
    client.writer.transport.pause_reading()
    client.send(get("/x"))
    await replica.left()
    [row] = app.telemetry.rows()
    assert row.errors == {"client_slow": 1}
    assert app.telemetry.attempts == {}


async def test_a_thousand_streams_and_every_byte(replicas: MakeReplica, router: MakeRouter) -> None:
    count, tokens = 1000, 10
    fleet = [await replicas() for _ in range(4)]

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        asked = request.json()["messages"][0]["content"]
        writer.write(SSE_HEAD)
        for number in range(tokens):
            text = hashlib.sha256(f"{asked}/{number}".encode()).hexdigest()
            writer.write(chunk(event(choices=[{"delta": {"content": text}}])))
            await asyncio.sleep(0)
            if number == 1:
                # All streams are open at once before any goes on.
                await everyone.wait()
        if "stream_options" in request.json():
            writer.write(chunk(event(choices=[], usage={"prompt_tokens": 1})))
        writer.write(chunk(b"data: [DONE]\n\n") + END)

    everyone = asyncio.Event()
    for replica in fleet:
        replica.handler = handler
    app = await router(*fleet, policy="cache_aware")

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        client = Raw(reader, writer)
        content = [{"role": "user", "content": f"hello {number}"}]
        body = json.dumps({"model": "m", "stream": True, "messages": content}).encode()
        client.send(post(PATH, body))
        await client.head()
        async with asyncio.timeout(50):
            got = unchunked(await client.chunks())
        texts = [hashlib.sha256(f"hello {number}/{n}".encode()).hexdigest() for n in range(tokens)]
        whole = b"".join(event(choices=[{"delta": {"content": text}}]) for text in texts)
        assert got == whole + b"data: [DONE]\n\n"
        client.close()

    async def watch() -> None:
        await until(lambda: len(exchanges(app)) == count, 40)
        everyone.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for number in range(count):
            group.create_task(one(number))
    assert sum(len(replica.received) for replica in fleet) == count
    assert all(len(replica.received) > count / 8 for replica in fleet)


async def test_large_requests_at_once(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    app = await router(*pair)

    async def one(number: int) -> None:
        client = await connect(app)
        body = CHAT[:-1] + b',"x":"' + b"%d" % number * 300_000 + b'"}'
        for _ in range(3):
            assert (await client.ask(post(PATH, body)))[0] == 200

    await asyncio.gather(*(one(number) for number in range(8)))
    bodies = {r.body[len(CHAT) + 5 :][:1] for replica in pair for r in replica.received}
    assert bodies == {b"%d" % number for number in range(8)}
    assert app.gateway.live.body_bytes == 0
