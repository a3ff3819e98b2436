"""Byte-exactness both ways: nothing is changed but what a proxy has to."""

from __future__ import annotations

import asyncio
import json
import string

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
    get,
    post,
    sized,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.http.request import DIRECTING, SPECIAL_HEADERS
from router.http.upstream import ASK_USAGE

PATH = "/v1/chat/completions"
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

NAMES = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=20)
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60
).map(str.strip)
KEPT = st.lists(
    st.tuples(NAMES.filter(lambda n: n.lower().encode() not in SPECIAL_HEADERS), VALUES),
    max_size=12,
)
BODIES = st.binary(max_size=3000)
PIECES = st.lists(st.integers(1, 500), max_size=20)


def lines(headers: list[tuple[str, str]]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]


class World:
    """One router for all examples of a test."""

    def __init__(self, replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
        self._make = (replicas, router, connect)
        self._made = False

    async def ready(self) -> World:
        replicas, router, connect = self._make
        if not self._made:
            self._made = True
            self.replica = await replicas()
            self.app = await router(self.replica)
            self.client = await connect(self.app)
        return self


@pytest.fixture
def world(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> World:
    return World(replicas, router, connect)


@QUICK
@given(headers=KEPT, body=BODIES, sizes=PIECES, chunked=st.booleans())
async def test_requests(
    world: World, headers: list[tuple[str, str]], body: bytes, sizes: list[int], chunked: bool
) -> None:
    await world.ready()
    head = b"POST /x/y?a=%20b&c HTTP/1.1\r\nHost: x\r\n" + lines(headers)
    if chunked:
        data = head + b"Transfer-Encoding: chunked\r\n\r\n"
        data += b"".join(map(chunk, cut(body, sizes))) + END
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for piece in cut(data, sizes):
        world.client.send(piece)
        await asyncio.sleep(0)
    assert (await world.client.answer())[0] == 200
    got = world.replica.received[-1]
    assert got.body == body
    assert (got.method, got.target) == ("POST", "/x/y?a=%20b&c")
    rebuilt = {"host", "via", "content-length", "x-request-id"}
    kept = [pair for pair in got.headers if pair[0] not in rebuilt]
    assert kept == [(name, value.strip()) for name, value in headers]


@QUICK
@given(
    headers=KEPT,
    body=BODIES,
    sizes=PIECES,
    framing=st.sampled_from(["sized", "chunked"]),
    status=st.sampled_from(["200 OK", "201 Created", "404 Not here", "500 Oops", "299 "]),
)
async def test_answers(
    world: World,
    headers: list[tuple[str, str]],
    body: bytes,
    sizes: list[int],
    framing: str,
    status: str,
) -> None:
    await world.ready()
    head = f"HTTP/1.1 {status}\r\n".encode() + lines(headers)
    raw = body
    if framing == "sized":
        head += b"content-length: %d\r\n\r\n" % len(body)
    else:
        head += b"transfer-encoding: chunked\r\n\r\n"
        raw = b"".join(map(chunk, cut(body, sizes))) + END
    world.replica.reply(*cut(head + raw, sizes))
    world.client.send(get("/x", "X-Request-Id: abc"))
    async with asyncio.timeout(5):
        got = await world.client.reader.readuntil(b"\r\n\r\n")
        rest = await world.client.reader.readexactly(len(raw))
    first, *found = got[:-4].decode("latin-1").split("\r\n")
    phrase = status[4:] or ""
    assert first.rstrip() == f"HTTP/1.1 {status[:3]} {phrase}".rstrip()
    pairs = [(line.partition(":")[0], line.partition(":")[2].strip()) for line in found]
    own = {"x-request-id", "content-length", "transfer-encoding", "connection"}
    assert [pair for pair in pairs if pair[0] not in own] == headers
    assert ("x-request-id", "abc") in pairs
    assert rest == raw


async def test_hop_by_hop_headers(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    hop = (
        *("Keep-Alive: timeout=5", "Proxy-Connection: x", "Proxy-Authorization: Basic x"),
        *("TE: trailers", "Trailer: T", "Upgrade: x", "HTTP2-Settings: x"),
    )
    await client.ask(
        get("/x", *hop, "Connection: keep-alive, X-Mine,x-other", "X-Mine: 1", "X-OTHER: 2", "A: b")
    )
    names = [name.lower() for name, _ in replica.received[0].headers]
    assert names == ["host", "a", "via", "x-request-id"]
    replica.reply(
        b"HTTP/1.1 200 OK\r\nKeep-Alive: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\n"
        b"Proxy-Authenticate: x\r\nUpgrade: h2c\r\nTrailer: T\r\nA: b\r\nContent-Length: 2\r\n\r\nok"
    )
    _, headers, _ = await client.ask(get("/x"))
    assert set(headers) == {"a", "content-length", "x-request-id"}


async def test_clients_do_not_tell_sidecars_where_to_connect(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    given = [f"{name.decode().title()}: 10.0.0.9:80" for name in sorted(DIRECTING)]
    client = await connect(await router(replica))
    # The second and third one go by what is known of the first one's head.
    for _ in range(3):
        assert (await client.ask(post(PATH, CHAT, *given, "A: b")))[0] == 200
        names = {name.lower() for name, _ in replica.received[-1].headers}
        assert "a" in names
        assert not names & {name.decode() for name in DIRECTING}
    await client.ask(get("/x", *given, "A: b"))
    names = {name.lower() for name, _ in replica.received[-1].headers}
    assert names == {"host", "a", "via", "x-request-id"}
    trusting = await connect(await router(replica, trust_kv_transfer=True))
    await trusting.ask(post(PATH, CHAT, *given))
    for name in DIRECTING:
        assert replica.received[-1].header(name.decode()) == "10.0.0.9:80"


async def test_trailers_of_an_answer_are_no_headers(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    raw = chunk(b"ab") + b"0\r\nX-Trailer: 1\r\nContent-Type: text/html\r\n\r\n"
    replica.reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + raw)
    client.send(get("/x"))
    _, headers = await client.head()
    assert set(headers) == {"transfer-encoding", "x-request-id"}
    assert await client.reader.readexactly(len(raw)) == raw


async def test_request_ids(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    _, headers, _ = await client.ask(post(PATH, CHAT, "X-Request-ID: my-id/1"))
    assert headers["x-request-id"] == "my-id/1"
    assert replica.received[0].header("x-request-id") == "my-id/1"
    made = set()
    # Not fit to be logged, or absent.
    for given_id in ("X-Request-Id: a b", "X-Request-Id: " + "x" * 200, 'X-Request-Id: "', "A: b"):
        _, headers, _ = await client.ask(post(PATH, CHAT, given_id))
        assert replica.received[-1].header("x-request-id") == headers["x-request-id"]
        made.add(headers["x-request-id"])
    assert len(made) == 4
    assert all(found.startswith("wr-") for found in made)
    _, headers, _ = await client.ask(get("/v1/models", "X-Request-Id: local"))
    assert headers["x-request-id"] == "local"
    # The replica's own word on it stays.
    replica.reply(sized(b"ok", extra="X-Request-Id: theirs\r\n"))
    client.send(post(PATH, CHAT))
    async with asyncio.timeout(5):
        head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.lower().count(b"x-request-id") == 1
    assert b"theirs" in head


async def test_bodies_are_not_understood_more_than_needed(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    body = (
        b'{ "model" : "m", "messages":[{"role":"user","content":"h\\u00e9llo","extra":1e400}],\n'
        b'"unknown": {"a":[1,2,{"b":null}]}, "temperature": 0.10, "cache_salt":"s", "model":"m" }'
    )
    assert (await client.ask(post(PATH, body)))[0] == 200
    assert replica.received[0].body == body


LARGE = st.integers(0, 3_000_000)


@settings(QUICK, max_examples=8)
@given(request=LARGE, answer=LARGE)
async def test_large_bodies(world: World, request: int, answer: int) -> None:
    await world.ready()
    sent = b'{"model":"m","messages":[],"x":"' + b"y" * request + b'"}'
    back = bytes(range(256)) * (answer // 256)
    world.replica.reply(sized(back))
    status, _, body = await world.client.ask(post(PATH, sent))
    assert status == 200
    assert body == back
    assert world.replica.received.pop().body == sent


# -- asking for usage


def usage_stream(usage: bool) -> bytes:
    out = b"".join(chunk(event(choices=[{"delta": {"content": c}}])) for c in "hello")
    if usage:
        out += chunk(event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 5}))
    return out + chunk(b"data: [DONE]\n\n") + END


async def test_usage_is_asked_for_and_taken_out(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(SSE_HEAD, usage_stream(usage=True))
    app = await router(replica)
    client = await connect(app)
    big = json.dumps({"model": "m", "stream": True, "messages": [], "x": "y" * 50_000}).encode()
    for body in (STREAM, big):
        _, _, got = await client.ask(post(PATH, body))
        assert got == usage_stream(usage=False)
        sent = replica.received[-1].body
        assert sent.replace(ASK_USAGE, b"") == body
        assert json.loads(sent)["stream_options"] == {"include_usage": True}
    [row] = app.telemetry.rows()
    assert (row.series.prompt_tokens, row.series.output_tokens) == (18, 10)


@pytest.mark.parametrize(
    "more",
    [
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": False}},
        {"stream": False},
    ],
)
async def test_usage_is_left_alone_where_the_client_has_a_say(
    more: dict[str, object], replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(SSE_HEAD, usage_stream(usage=True))
    app = await router(replica)
    client = await connect(app)
    body = json.dumps({**json.loads(STREAM), **more}).encode()
    _, _, got = await client.ask(post(PATH, body))
    assert got == usage_stream(usage=True)
    assert replica.received[0].body == body


async def test_usage_off_touches_nothing(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(SSE_HEAD, usage_stream(usage=True))
    app = await router(replica, stream_usage=False)
    client = await connect(app)
    _, _, got = await client.ask(post(PATH, STREAM))
    assert got == usage_stream(usage=True)
    assert replica.received[0].body == STREAM


async def test_usage_asked_and_no_stream_answered(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    error = json.dumps({"error": {"usage": 1}, "choices": [], "usage": {}}).encode()
    replica.reply(sized(error, "400 Bad Request"))
    status, _, got = await client.ask(post(PATH, STREAM))
    assert (status, got) == (400, error)


NOT_FOR_ONE_HOP = "Content-Length, Transfer-Encoding, Content-Type, Content-Encoding, Host, x-mine"


async def test_what_frames_a_message_is_not_for_one_hop(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    named = f"Connection: {NOT_FOR_ONE_HOP}"
    mine = ("Content-Type: text/x", "Content-Encoding: br", "X-Mine: 1")
    for _ in range(2):
        status, _, _ = await client.ask(post("/x", b"abc", named, *mine))
        assert status == 200
    for got in replica.received:
        assert got.body == b"abc"
        assert (got.header("content-type"), got.header("content-encoding")) == ("text/x", "br")
        assert got.header("x-mine") is None
    about = f"{named}\r\nContent-Type: text/x\r\nContent-Encoding: br\r\nX-Mine: 1\r\n".encode()
    framed = {
        b"Content-Length: 2\r\n\r\nok": b"ok",
        b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"ok") + END: chunk(b"ok") + END,
    }
    for raw, body in framed.items():
        replica.reply(b"HTTP/1.1 200 OK\r\n" + about + raw)
        status, headers, found = await client.ask(get("/x"))
        assert (status, found) == (200, body)
        assert (headers["content-type"], headers["content-encoding"]) == ("text/x", "br")
        assert "x-mine" not in headers
