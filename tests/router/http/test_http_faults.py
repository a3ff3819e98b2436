"""Replicas that fail in every way, and what the client is told."""

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
    Received,
    ScriptedReplica,
    chunk,
    event,
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
        assert (how, status, error["code"]) == (how, 502, "replica_failed")
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
    assert (status, json.loads(body)["error"]["code"]) == (502, "replica_failed")
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

    monkeypatch.setattr(app.gateway, "loop", Loop())
    for _ in range(2):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert len(good.received) == 2
    assert app.telemetry.attempts == {(f"127.0.0.1:{bad.port}", "timeout_connect"): 2}


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
        [exchange] = app.gateway.exchanges
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
        assert (b"replica_died" in rest) == usage, name
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
    assert b"replica_died" in rest
    # An engine that ends its stream by closing, reset in the middle.
    head = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    replica.reply_and_close(head, event(a=1), reset=True)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.head()
    assert b"replica_died" in await client.rest()


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


async def test_statuses_without_a_body(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for head in (
        *(b"204 No Content\r\n", b"304 Not Modified\r\ncontent-length: 7\r\n"),
        b"304 Not Modified\r\netag: x\r\n",
    ):
        # The line end behind it belongs to nothing.
        replica.reply(b"HTTP/1.1 " + head + b"\r\n\r\n")
        client.send(get("/x"))
        status, headers, _ = await client.answer()
        assert status == int(head[:3])
        assert "connection" not in headers
    replica.handler = None
    assert (await client.ask(get("/x")))[2] == b'{"ok":true}'


async def test_interim_answers_are_skipped(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    answer = sized(b"body\r\n\r\nbody")
    for pieces in (
        (interim + answer,),
        (interim, answer),
        (b"\r\n\r\n" + interim + b"\r\n\r\n" + answer,),
        tuple(bytes([byte]) for byte in b"\r\n" + interim + answer),
    ):
        replica.reply(*pieces)
        status, headers, body = await client.ask(get("/x"))
        assert (status, body) == (200, b"body\r\n\r\nbody")
        assert "link" not in headers


async def test_line_ends_behind_an_answer_are_not_passed_on(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    replica.reply(sized(b"ok") + b"\r\n\r\n")
    for _ in range(2):
        assert (await client.ask(get("/x")))[2] == b"ok"
    replica.reply(sized(b"")[:-2] + b"connection: close\r\n\r\n\r\n")
    assert (await client.ask(get("/x")))[2] == b""
    replica.reply_and_close(sized(b"last"))
    assert (await client.ask(get("/x", "Connection: close")))[2] == b"last"
    assert await client.rest() == b""


async def test_a_policy_that_fails(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    complaints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints.append("request wr-.* failed")
    bad, good = await replicas(), await replicas()
    app = await router(bad, good)
    client = await connect(app)
    place = app.placer.place

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a policy's bug")

    monkeypatch.setattr(app.placer, "place", fails)
    status, _, body = await client.ask(post(PATH, CHAT))
    assert status == 500
    assert "policy" not in body.decode()
    # The same on a retry, after the first one was refused or has died.
    for end in ("close", "stop"):
        monkeypatch.setattr(app.placer, "place", place)
        fail(bad, "close")
        if end == "stop":
            await bad.stop()
        placed = 0

        def once(*args: object, **options: object) -> object:
            nonlocal placed
            placed += 1
            if placed > 1:
                raise RuntimeError("a policy's bug")
            eligible = {"eligible": 1}
            return place(*args[:3], eligible["eligible"], *args[4:], **options)  # type: ignore[arg-type]

        monkeypatch.setattr(app.placer, "place", once)
        assert (await client.ask(post(PATH, CHAT)))[0] == 500
    monkeypatch.setattr(app.placer, "place", place)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200


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


async def test_the_router_itself_fails(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    complaints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints += ["request wr-.* failed", "the end of request wr-.* was not told"]
    app = await router(await replicas())
    client = await connect(app)

    def fails(*_: object) -> str:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("router.http.exchange.model_of", fails)
        status, _, body = await client.ask(post("/v1/embeddings", CHAT))
        assert (status, "bug" in body.decode()) == (500, False)
    with monkeypatch.context() as patched:
        patched.setattr(app.telemetry, "observe", fails)
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    complaints.append("a request could not be read")
    with monkeypatch.context() as patched:
        patched.setattr("router.http.server.monotonic", fails)
        status, headers, _ = await client.ask(post(PATH, CHAT))
        assert (status, headers["connection"]) == (500, "close")
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
