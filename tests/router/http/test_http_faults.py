"""Replicas that fail or freeze in the middle, and what the client is told."""

from __future__ import annotations

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
    chunk,
    event,
    exchanges,
    get,
    post,
    sized,
    unchunked,
    until,
)

PATH = "/v1/chat/completions"
STREAM_PATHS = {
    PATH: STREAM,
    "/v1/completions": json.dumps({"model": "m", "stream": True, "prompt": "hello"}).encode(),
    "/v1/responses": json.dumps({"model": "m", "stream": True, "input": "hello"}).encode(),
    "/v1/messages": STREAM,
}
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}}]))


async def test_mid_body(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1000)
    cut = {
        "sized": sized(b"x" * 100)[:-1],
        "chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
        "between chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"ab"),
    }
    for name, answer in cut.items():
        for reset in (False, True):
            replica.reply_and_close(answer, reset=reset)
            client = await connect(app)
            client.send(post(PATH, CHAT))
            status, _ = await client.head()
            assert (name, status) == (name, 200)
            # Short of its length or its last chunk: no client takes it for whole.
            assert await client.rest() == answer.partition(b"\r\n\r\n")[2]
    assert app.telemetry.attempts == {(app.fleet.replicas[0].name, "died_mid_stream"): 6}  # type: ignore[union-attr]


async def test_until_close_is_whole_or_reset(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    replica.reply_and_close(UNTIL_CLOSE, b"all of it")
    status, headers, body = await client.ask(post(PATH, CHAT))
    assert (status, headers["connection"], body) == (200, "close", b"all of it")
    assert app.telemetry.attempts == {}
    # Cut off, a close would look like the end.
    for answer, version in ((UNTIL_CLOSE, b"1.1"), (b"chunked", b"1.0")):
        replica.reply_and_close(UNTIL_CLOSE, b"a part of it", reset=True)
        if answer == b"chunked":
            head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
            replica.reply_and_close(head, chunk(b"a part of it"))
        client = await connect(app)
        client.send(get("/x").replace(b"HTTP/1.1", b"HTTP/" + version))
        with pytest.raises(ConnectionResetError):
            await client.answer()


@pytest.mark.parametrize("path", STREAM_PATHS)
@pytest.mark.parametrize("usage", [True, False])
async def test_mid_stream(
    path: str, usage: bool, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1000, stream_usage=usage)
    whole = usage and path in (PATH, "/v1/completions")
    for reset in (False, True):
        for torn in (b"", TOKEN[:10]):
            replica.reply_and_close(SSE_HEAD, TOKEN, TOKEN, torn, reset=reset)
            client = await connect(app)
            client.send(post(path, STREAM_PATHS[path]))
            assert (await client.head())[0] == 200
            rest = await client.rest()
            assert rest.startswith(TOKEN + TOKEN)
            assert b"[DONE]" not in rest
            assert not rest.endswith(END)
            told = rest[len(TOKEN + TOKEN) :]
            if torn and not whole:
                # No event can be put into the middle of a chunk.
                assert told == torn
                continue
            text = unchunked(told).decode()
            name = f"127.0.0.1:{replica.port}"
            [line] = [line for line in text.splitlines() if line.startswith("data: ")]
            error = json.loads(line.removeprefix("data: "))
            assert f"replica {name} closed its connection" in error["error"]["message"]
            assert text.startswith("\n\n")
            assert text.endswith("\n\n")
            named = path in ("/v1/responses", "/v1/messages")
            assert ("event: error\n" in text) == named
            if path == "/v1/responses":
                assert error["type"] == "error"
                assert name in error["message"]


@pytest.mark.parametrize("usage", [True, False])
async def test_garbage_mid_stream(
    usage: bool, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1000, stream_usage=usage)
    garbage = {
        "a chunk size": (TOKEN, b"zzz\r\n"),
        "behind a chunk in the same read": (TOKEN, TOKEN + b"zzz\r\n"),
        "a torn chunk, mended": (TOKEN, TOKEN[:10], TOKEN[10:] + b"zzz\r\n"),
        "a second answer": (TOKEN, END + sized(b"two")),
    }
    for name, pieces in garbage.items():
        replica.reply_in_steps(SSE_HEAD + pieces[0], *pieces[1:])
        client = await connect(app)
        client.send(post(PATH, STREAM))
        await client.head()
        [exchange] = exchanges(app)
        for piece in pieces[1:]:
            relay = exchange.relay
            assert relay is not None
            relay.active = False
            replica.step()
            if piece is not pieces[-1]:
                await until(lambda: relay.active)  # noqa: B023
        rest = await client.rest()
        assert rest.startswith(TOKEN), name
        assert not rest.endswith(END), name
        # Where the stream is not watched for its usage, the client may have a part of a chunk.
        assert (b'"code":502' in rest) == usage, name
        assert b"zzz" not in rest, name
        assert b"two" not in rest, name


async def test_old_streams_are_told_too(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1000)
    replica.reply_and_close(SSE_HEAD, TOKEN)
    client = await connect(app)
    client.send(post(PATH, STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
    await client.head()
    rest = await client.rest()
    assert rest.startswith(b"data: ")
    assert b'"code":502' in rest
    # An engine that ends its stream by closing, reset in the middle.
    head = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    replica.reply_and_close(head, event(a=1), reset=True)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.head()
    assert b'"code":502' in await client.rest()


@pytest.mark.usefixtures("quick_sweep")
async def test_a_frozen_replica(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    frozen, other = await replicas(), await replicas()
    app = await router(frozen, other, first_byte_timeout=0.2, chunk_timeout=0.2)
    frozen.hang()
    clients = [await connect(app) for _ in range(2)]
    for client in clients:
        client.send(post(PATH, CHAT))
    found = [await client.answer() for client in clients]
    # The engine may be at work on it: no other replica is asked.
    assert sorted(status for status, _, _ in found) == [200, 504]
    assert len(other.received) == 1
    await frozen.left()
    frozen.lost.clear()
    frozen.hang(SSE_HEAD, TOKEN)
    app.fleet.remove(other.url)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.head()
    rest = await client.rest()
    assert rest.startswith(TOKEN)
    assert b"silent for too long" in rest
    await frozen.left()


async def test_others_do_not_wait_for_a_frozen_replica(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    frozen, other = await replicas(), await replicas()
    app = await router(frozen, other)
    frozen.hang()
    waiting = [await connect(app) for _ in range(20)]
    quick = []
    for client in waiting:
        client.send(post(PATH, CHAT))
    await until(lambda: len(frozen.received) == len(other.received) == 10)
    app.fleet.remove(frozen.url)
    client = await connect(app)
    for _ in range(100):
        started = time.perf_counter()
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
        quick.append(time.perf_counter() - started)
    assert sorted(quick)[50] < 0.05
    for client in waiting:
        client.close()
