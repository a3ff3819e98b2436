"""What a client may take: sizes, numbers and time."""

from __future__ import annotations

import asyncio
import json
import tracemalloc

import pytest
from http_world import (
    CHAT,
    END,
    Connect,
    MakeReplica,
    MakeRouter,
    get,
    post,
    sized,
    until,
)

PATH = "/v1/chat/completions"
H = b"Host: x\r\n"
P = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
G = b"GET /x HTTP/1.1\r\nHost: x\r\n"


async def test_trailers_without_end(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), max_head=2048)
    client = await connect(app)
    client.send(P + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
    for _ in range(100):
        client.send(b"T: " + b"x" * 50 + b"\r\n")
        await asyncio.sleep(0)
    status, _, _ = await client.answer()
    assert status == 431


async def test_a_large_body_in_chunks_is_no_large_head(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, max_head=2048)
    client = await connect(app)
    text = b"x" * 100_000
    [connection] = app.front.clients
    head = P.replace(PATH.encode(), b"/x") + b"Transfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"%x\r\n" % len(text))
    # Each read ends between a chunk's size and its first byte.
    for count in range(1, 4):
        await until(lambda: connection.in_head)
        client.send(text, b"\r\n%x\r\n" % len(text))
        await until(lambda: app.gateway.live.body_bytes == count * len(text))  # noqa: B023
    client.send(text + b"\r\n0\r\n\r\n")
    status, _, _ = await client.answer()
    assert status == 200
    assert len(replica.received[0].body) == 4 * len(text)


async def test_head_too_large(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica, max_head=2048)
    for header in ("A: " + "x" * 3000, "\r\n".join(f"H{i}: {'v' * 50}" for i in range(60))):
        client = await connect(app)
        status, headers, body = await client.ask(get("/x", header))
        assert (status, headers["connection"]) == (431, "close")
        assert "2048" in json.loads(body)["error"]["message"]
        # The same in pieces, never finished.
        client = await connect(app)
        for at in range(0, len(get("/x", header)) - 2, 100):
            client.send(get("/x", header)[at : at + 100])
            await asyncio.sleep(0)
        assert (await client.answer())[0] == 431
    client = await connect(app)
    assert (await client.ask(get("/" + "x" * 3000)))[0] == 431
    client = await connect(app)
    assert (await client.ask(get("/x", "A: " + "x" * 1900)))[0] == 200
    assert len(replica.received) == 1


async def test_a_head_behind_a_large_body_is_not_large(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, max_head=2048)
    client = await connect(app)
    request = get("/y", "A: b")
    # Whatever the reads are, most of them end inside the second head.
    for _ in range(5):
        client.send(post("/x", b"x" * 200_000) + request[:20])
        status, _, _ = await client.answer()
        assert status == 200
        status, _, _ = await client.ask(request[20:])
        assert status == 200
    assert len(replica.received) == 10


async def test_body_too_large(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica, max_body=10_000)
    chunked = P + b"Transfer-Encoding: chunked\r\n\r\n" + (b"64\r\n" + b"x" * 100 + b"\r\n") * 5000
    for data in (post(PATH, b"x" * 5_000_000), chunked):
        client = await connect(app)
        # The client sends it all before it reads, and sees the answer all the same.
        client.send(data)
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert "10000" in json.loads(body)["error"]["message"]
        assert await client.rest() == b""
    assert replica.received == []


async def test_bodies_in_memory_are_bounded(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, body_memory=100_000)
    first, second = await connect(app), await connect(app)
    first.send(post(PATH, b"x" * 90_000)[:-1])
    await until(lambda: app.gateway.live.body_bytes > 80_000)
    status, headers, _ = await second.ask(post(PATH, b"x" * 20_000))
    assert (status, headers["retry-after"]) == (503, "2")
    await until(lambda: app.gateway.live.body_bytes < 90_000)
    first.close()


async def test_too_many_connections(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), max_connections=2)
    kept = [await connect(app) for _ in range(2)]
    for client in kept:
        assert (await client.ask(get("/x")))[0] == 200
    third = await connect(app)
    status, headers, _ = await third.ask(get("/x"))
    assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "2")
    assert await third.rest() == b""
    kept[0].close()
    await until(lambda: len(app.front.clients) == 1)
    assert (await (await connect(app)).ask(get("/x")))[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_slow_requests_end(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), head_timeout=0.1, idle_timeout=0.1)
    idle, in_head, in_body = [await connect(app) for _ in range(3)]
    in_head.send(b"GET /x HTTP/1.1\r\n")
    in_body.send(post(PATH, CHAT)[:-1])
    for client in (in_head, in_body):
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert await client.rest() == b""
    assert await idle.rest() == b""


@pytest.mark.usefixtures("quick_sweep")
async def test_idleness_is_counted_from_the_answer(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_in_steps(sized(b"first")[:-1], b"t")
    app = await router(replica, idle_timeout=0.5)
    client = await connect(app)
    client.send(get("/slow"))
    await client.head()
    [connection] = app.front.clients
    await asyncio.sleep(0.7)
    assert connection.idle_ticks == 0
    replica.step()
    assert await client.reader.readexactly(5) == b"first"
    replica.handler = None
    assert (await client.ask(get("/x")))[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_a_client_that_never_reads_its_answer_is_let_go(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"x" * 20_000))
    app = await router(replica, idle_timeout=0.2)
    client = await connect(app)
    client.writer.transport.pause_reading()
    client.send(get("/x") * 500)
    # What the kernels hold and what waits in the router: then nothing moves any more.
    await until(lambda: not app.front.clients)


CHUNKED = P + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (P + b"Content-Length: 100000\r\n\r\n", b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"ffff;", b"x"),
        (CHUNKED + b"0\r\n", b"T: x\r\n"),
        (P, b"T: x\r\n"),
    ],
    ids=["sized", "chunked", "in a chunk's extension", "in trailers", "in the head"],
)
async def test_a_request_that_trickles_ends(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, head: bytes, piece: bytes
) -> None:
    app = await router(await replicas(), head_timeout=0.3, idle_timeout=30.0)
    client = await connect(app)
    client.send(head)

    async def trickle() -> None:
        while True:
            client.send(piece)
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    status, headers, _ = await client.answer()
    trickling.cancel()
    assert (status, headers["connection"]) == (408, "close")
    assert app.gateway.live.body_bytes == 0


@pytest.mark.usefixtures("quick_sweep")
async def test_a_body_that_keeps_coming_is_waited_for(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    # 100 bytes in each 0.3 s.
    app = await router(replica, head_timeout=0.3, idle_timeout=0.5, body_rate=333)
    client = await connect(app)
    client.send(P.replace(PATH.encode(), b"/x") + b"Content-Length: 15000\r\n\r\n")
    [connection] = app.front.clients
    measured = 0
    before = connection._mark
    for _ in range(50):
        client.send(b"x" * 300)
        for _ in range(2):
            await asyncio.sleep(0.02)
            measured += connection._mark != before
            before = connection._mark
    status, _, _ = await client.answer()
    assert status == 200
    assert measured >= 2
    assert replica.received[0].body == b"x" * 15_000


@pytest.mark.usefixtures("quick_sweep")
async def test_a_body_that_is_not_asked_for_yet_is_not_late(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply_in_steps(sized(b"first")[:-1], b"t")
    app = await router(replica, head_timeout=0.1, idle_timeout=0.1)
    client = await connect(app)
    client.send(get("/slow"), post("/x", b"abc", "Expect: 100-continue")[:-3])
    await client.head()
    [connection] = app.front.clients
    await until(lambda: connection.in_body)
    for _ in range(20):
        await asyncio.sleep(0.02)
        assert connection.in_request
    replica.step()
    assert await client.reader.readexactly(5) == b"first"
    assert (await client.head())[0] == 100
    replica.handler = None
    assert (await client.ask(b"abc"))[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_bytes_that_begin_no_request_keep_nothing_open(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), idle_timeout=0.3)
    client = await connect(app)

    async def trickle() -> None:
        while True:
            client.send(b"\r\n")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    await until(lambda: app.front.clients)
    await until(lambda: not app.front.clients)
    trickling.cancel()


async def test_a_body_in_small_chunks_takes_what_is_counted(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    count = 100_000
    tracemalloc.start()
    try:
        client.send(CHUNKED.replace(PATH.encode(), b"/x"))
        await until(lambda: app.front.clients)
        before, _ = tracemalloc.get_traced_memory()
        client.send(b"2\r\nab\r\n" * count)
        await until(lambda: app.gateway.live.body_bytes == 2 * count)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2 * (2 * count)
    assert (await client.ask(END))[0] == 200
    assert replica.received[0].body == b"ab" * count


async def test_too_few_open_files_for_more_clients(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.descriptors.limit", lambda: 80)
    replica = await replicas()
    app = await router(replica)
    # Half of them is kept back, and each client may need a connection to a replica.
    assert app.gateway.most_clients == 20
    # By their numbers, those that this test has open are too many already.
    app.gateway.files_for_clients = 1000
    kept = [await connect(app) for _ in range(20)]
    await until(lambda: len(app.front.clients) == 20)
    more = [await connect(app) for _ in range(40)]
    told = [(await client.rest())[:12] for client in more]
    # What is over takes no files: some are told, the others are closed at once.
    assert sorted(told) == [b""] * 24 + [b"HTTP/1.1 503"] * 16
    for client in more:
        client.close()
    await until(lambda: app.gateway.shed == 0)
    assert (await kept[0].ask(get("/x")))[0] == 200
    kept[1].close()
    await until(lambda: len(app.front.clients) == 19)
    app.gateway.files_for_clients = 3
    assert (await (await connect(app)).ask(get("/x")))[0] == 503
    app.gateway.files_for_clients = 1000
    assert (await (await connect(app)).ask(get("/x")))[0] == 200
