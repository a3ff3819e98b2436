"""Anything at all, from either side: an answer or a close, no hang, nothing logged, books balanced."""

from __future__ import annotations

import asyncio
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
    Received,
    ScriptedReplica,
    chunk,
    event,
    exchanges,
    get,
    post,
    sized,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.app import App

PATH = "/v1/chat/completions"
QUICK = settings(
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)

SEEDS = (
    post(PATH, CHAT),
    post(PATH, STREAM, "Expect: 100-continue", "X-Request-Id: a"),
    get("/v1/models") * 2,
    get("/x", "Connection: upgrade", "Upgrade: websocket"),
    post("/y", CHAT, "Connection: upgrade, x", "Upgrade: h2c", "X: 1"),
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(CHAT[:10])
    + chunk(CHAT[10:])
    + b"0\r\nT: v\r\n\r\n"
    + get("/z"),
    b"GET http://a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
)
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}}]))
ANSWERS = (
    sized(b'{"usage":{"prompt_tokens":1}}'),
    SSE_HEAD + TOKEN * 3 + chunk(event(choices=[], usage={"prompt_tokens": 1})) + END,
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\ncontent-length: 1\r\n\r\nx",
    b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nxyz",
    b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No\r\n\r\n",
)
BITS = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b":",
            b" ",
            b"\t",
            b"0\r\n\r\n",
            b"\r\n\r\n",
            b"\xff",
            b"9" * 30,
        ),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
        *(b"HTTP/1.1", b"HTTP/9.9", b"{", b"}", b'"usage"', b"-1", b"ffffffff\r\n", b"A" * 3000),
    ]
)


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid message with a few changes: bits put in, cut out, doubled, or exchanged."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 30)))
        kind = draw(st.sampled_from("pcdx"))
        if kind == "p":
            data = data[:at] + draw(BITS) + data[at:]
        elif kind == "c":
            data = data[:at] + data[end:]
        elif kind == "d":
            data = data[:end] + data[at:]
        else:
            data = data[:at] + draw(st.binary(min_size=end - at, max_size=end - at)) + data[end:]
    return data


CUTS = st.lists(st.integers(1, 300), max_size=6)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [piece for piece in (*pieces, data) if piece]


class World:
    """One router for all examples of a test."""

    app: App
    replica: ScriptedReplica

    def __init__(self, replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
        self._make = (replicas, router, connect)

    async def ready(self) -> None:
        replicas, router, _ = self._make
        if not hasattr(self, "app"):
            self.replica = await replicas()
            # Its health is not the question here.
            self.app = await router(
                self.replica,
                breaker_failures=100_000,
                head_timeout=0.2,
                idle_timeout=0.2,
                first_byte_timeout=0.2,
                chunk_timeout=0.2,
                max_head=4096,
            )

    async def says(self, *pieces: bytes, leave: bool = False) -> bytes:
        """All the router says on a connection until it closes it."""
        client = await self._make[2](self.app)
        async with asyncio.timeout(10):
            for piece in pieces:
                client.send(piece)
                await asyncio.sleep(0)
            if leave:
                await asyncio.sleep(0.05)
                client.vanish()
                return b""
            try:
                said = await client.reader.read()
            except ConnectionResetError:
                return b"reset"
        client.close()
        return said

    async def still_well(self) -> None:
        """Another client is served as if nothing had happened."""
        await until(lambda: not exchanges(self.app))
        self.replica.handler = None
        client = await self._make[2](self.app)
        assert (await client.ask(post(PATH, CHAT)))[2] == b'{"ok":true}'
        client.close()


@pytest.fixture
def world(replicas: MakeReplica, router: MakeRouter, connect: Connect, quick_sweep: None) -> World:
    return World(replicas, router, connect)


@QUICK
@given(st.lists(st.tuples(st.one_of(mutated(SEEDS), st.binary(max_size=300)), CUTS), max_size=12))
async def test_clients(world: World, sent: list[tuple[bytes, list[int]]]) -> None:
    await world.ready()
    for said in await asyncio.gather(*(world.says(*cut(data, sizes)) for data, sizes in sent)):
        assert not said or said.startswith((b"HTTP/1.1 ", b"reset"))
    await world.still_well()


@QUICK
@given(
    st.lists(
        st.tuples(
            st.one_of(mutated(ANSWERS), st.binary(max_size=300)),
            CUTS,
            st.sampled_from([*SEEDS[:5], b"HEAD /x HTTP/1.1\r\nHost: x\r\n\r\n"]),
            st.booleans(),
        ),
        max_size=12,
    )
)
async def test_replicas(
    world: World, exchanges: list[tuple[bytes, list[int], bytes, bool]]
) -> None:
    await world.ready()

    async def handler(
        request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        data, sizes, _, close = exchanges[int(request.header("x-number") or 0)]
        for piece in cut(data, sizes):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()
            raise ConnectionAbortedError

    world.replica.handler = handler
    asked = [
        data.replace(b"\r\n", b"\r\nX-Number: %d\r\n" % number, 1)
        for number, (_, _, data, _) in enumerate(exchanges)
    ]
    # A tunnel has no timeouts: its client leaves.
    told = [
        world.says(data, leave=b"websocket" in data and b"101" in exchanges[number][0])
        for number, data in enumerate(asked)
    ]
    for said in await asyncio.gather(*told):
        assert not said or said.startswith((b"HTTP/1.1 ", b"reset"))
    await world.still_well()


@settings(QUICK, max_examples=50)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "messages", "prompt", "input", "content", "role", "type", "stream"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
    path=st.sampled_from([PATH, "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"]),
)
async def test_bodies(world: World, value: object, path: str) -> None:
    await world.ready()
    client = await world._make[2](world.app)
    body = json.dumps(value).encode()
    status, _, answer = await client.ask(post(path, body, "Connection: close"))
    assert status in (200, 400, 404)
    assert json.loads(answer)
    if status == 200:
        assert world.replica.received[-1].body.endswith(body[1:])
