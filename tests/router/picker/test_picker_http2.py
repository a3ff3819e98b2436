"""The picker's HTTP/2, frame by frame: what a client may do, and what ends its connection."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from hpack import Decoder, Encoder
from picker_world import Maker

from loadgen.replicas import SimulatedFleet
from router.picker.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
)
from router.picker.http2 import FRAME, PREFACE

CHECK = "/grpc.health.v1.Health/Check"
SECONDS = 20.0
U32 = struct.Struct(">I")


def asked(service: str = "liveness") -> bytes:
    message = StringValue(value=service).SerializeToString()
    return struct.pack(">BI", 0, len(message)) + message


@dataclass
class Client:
    """A connection that sends frames as they are given."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    encoder: Encoder = field(default_factory=Encoder)
    decoder: Decoder = field(default_factory=Decoder)
    heads: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)

    def send(self, *frames: bytes) -> None:
        for each in frames:
            self.writer.write(each)

    def block(self, path: str = CHECK, **more: str) -> bytes:
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "te": "trailers",
            "content-type": "application/grpc",
            **more,
        }
        return bytes(self.encoder.encode(list(headers.items())))

    async def read(self) -> tuple[int, int, int, bytes]:
        """The next frame: type, flags, stream, content."""
        async with asyncio.timeout(SECONDS):
            head = await self.reader.readexactly(9)
            size = int.from_bytes(head[:3], "big")
            content = await self.reader.readexactly(size)
        return head[3], head[4], U32.unpack(head[5:])[0], content

    async def until(self, kind: int, flags: int = 0) -> bytes:
        """The content of the next frame of this type."""
        while True:
            found, given, number, content = await self.read()
            if found == HEADERS:
                # Its decoder has a state: every block is decoded.
                self.heads.setdefault(number, []).append(dict(self.decoder.decode(content)))
            elif found == DATA:
                self.bodies[number] = self.bodies.get(number, b"") + content
            if found == kind and given & flags == flags:
                return content

    async def answer(self, number: int) -> tuple[dict[str, str], bytes]:
        """The last headers and the body of a stream that has ended."""
        while not self.heads.get(number) or "grpc-status" not in self.heads[number][-1]:
            await self.until(HEADERS)
        return self.heads[number][-1], self.bodies.get(number, b"")

    async def goes_away(self) -> int:
        """The error code with which the connection ends."""
        content = await self.until(GOAWAY)
        async with asyncio.timeout(SECONDS):
            assert await self.reader.read() == b""
        return U32.unpack_from(content, 4)[0]

    async def serves(self, number: int) -> None:
        """A whole call is answered."""
        flags = END_HEADERS
        self.send(frame(HEADERS, flags, number, self.block()))
        self.send(frame(DATA, END_STREAM, number, asked()))
        trailers, body = await self.answer(number)
        assert trailers["grpc-status"] == "0"
        assert Int32Value.FromString(body[5:]).value == 1


@pytest.fixture
async def client(maker: Maker) -> AsyncIterator[Client]:
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls)
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        made = Client(reader, writer)
        made.send(PREFACE, frame(SETTINGS, 0, 0))
        yield made
        writer.close()


async def test_a_call_in_single_bytes(client: Client) -> None:
    whole = frame(HEADERS, END_HEADERS, 1, client.block()) + frame(DATA, END_STREAM, 1, asked())
    for at in range(len(whole)):
        client.send(whole[at : at + 1])
        await client.writer.drain()
        await asyncio.sleep(0)
    trailers, _ = await client.answer(1)
    assert trailers["grpc-status"] == "0"


async def test_padding_priority_and_continuation(client: Client) -> None:
    block = client.block()
    first = b"\x03" + b"\x00\x00\x00\x00\x10" + block[:4] + b"\0\0\0"
    client.send(
        frame(HEADERS, PADDED | WITH_PRIORITY, 1, first),
        frame(CONTINUATION, 0, 1, block[4:9]),
        frame(CONTINUATION, END_HEADERS, 1, block[9:]),
        frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        frame(0x77, 0, 0, b"of a type that nobody knows"),
        frame(DATA, END_STREAM | PADDED, 1, b"\x05" + asked() + bytes(5)),
    )
    trailers, _ = await client.answer(1)
    assert trailers["grpc-status"] == "0"


async def test_pings_and_settings_are_answered(client: Client) -> None:
    await client.until(SETTINGS, ACK)
    client.send(frame(PING, 0, 0, b"12345678"))
    assert await client.until(PING, ACK) == b"12345678"
    await client.serves(1)


async def test_an_answer_waits_for_the_windows(client: Client) -> None:
    """Of its stream, and of the connection."""
    client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
    await client.until(SETTINGS, ACK)
    await client.until(SETTINGS, ACK)
    client.send(frame(HEADERS, END_HEADERS, 1, client.block()))
    client.send(frame(DATA, END_STREAM, 1, asked()))
    await client.until(HEADERS)
    client.send(frame(PING, 0, 0, b"........"))
    await client.until(PING, ACK)
    assert not client.bodies
    client.send(frame(WINDOW_UPDATE, 0, 1, U32.pack(3)))
    await client.until(DATA)
    assert len(client.bodies[1]) == 3
    client.send(frame(WINDOW_UPDATE, 0, 1, U32.pack(100)))
    trailers, body = await client.answer(1)
    assert (trailers["grpc-status"], len(body)) == ("0", 7)
    # A new setting changes the window of streams that are open.
    client.send(frame(HEADERS, END_HEADERS, 3, client.block()))
    client.send(frame(DATA, END_STREAM, 3, asked()))
    await client.until(HEADERS)
    client.send(frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 100)))
    trailers, body = await client.answer(3)
    assert (trailers["grpc-status"], len(body)) == ("0", 7)


async def test_a_header_table_that_changes_between_equal_blocks(client: Client) -> None:
    """A block that was decoded before may mean something else by now."""
    # Adds Check's path to the table, as its newest entry, and one that only refers to it.
    adds = client.block()
    refers = client.block()
    assert refers != adds
    assert min(refers) >= 0x80
    for number, block in ((1, adds), (3, refers), (5, refers)):
        client.send(frame(HEADERS, END_HEADERS, number, block))
        client.send(frame(DATA, END_STREAM, number, asked()))
        assert (await client.answer(number))[0]["grpc-status"] == "0"
    # Another path takes the place of Check's: what referred to Check refers to it now.
    static = client.block("/other/Method")
    at = bytearray(refers)
    assert len(static) > len(refers)
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 7, static))
    assert (await client.answer(7))[0]["grpc-status"] == "12"
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 9, bytes(at)))
    headers = (await client.answer(9))[0]
    assert headers["grpc-status"] != "0"


async def test_a_stream_that_is_reset_leaves_the_others(client: Client) -> None:
    client.send(frame(HEADERS, END_HEADERS, 1, client.block()))
    client.send(frame(RST_STREAM, 0, 1, U32.pack(8)))
    client.send(frame(DATA, END_STREAM, 1, asked()))
    await client.serves(3)


async def test_trailers_of_a_client(client: Client) -> None:
    client.send(frame(HEADERS, END_HEADERS, 1, client.block()))
    client.send(frame(DATA, 0, 1, asked()))
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, client.encoder.encode([("a", "b")])))
    trailers, _ = await client.answer(1)
    assert trailers["grpc-status"] == "0"


async def test_what_is_no_grpc(client: Client) -> None:
    headers = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "x"}
    client.send(
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            bytes(client.encoder.encode(list(headers.items()))),
        )
    )
    await client.until(HEADERS)
    assert client.heads[1][-1][":status"] == "415"


async def test_a_compressed_message(client: Client) -> None:
    client.send(frame(HEADERS, END_HEADERS, 1, client.block()))
    client.send(frame(DATA, 0, 1, struct.pack(">BI", 1, 3) + b"abc"))
    assert (await client.answer(1))[0]["grpc-status"] == "12"
    await client.serves(3)


async def test_a_message_that_is_too_large(client: Client) -> None:
    client.send(frame(HEADERS, END_HEADERS, 1, client.block()))
    client.send(frame(DATA, 0, 1, struct.pack(">BI", 0, 1 << 31)))
    assert (await client.answer(1))[0]["grpc-status"] == "8"
    await client.serves(3)


BROKEN: dict[str, tuple[int, Any]] = {
    "HTTP/1.1": (PROTOCOL_ERROR, None),
    "a frame that is too large": (FRAME_SIZE_ERROR, frame(DATA, 0, 1, bytes(FRAME + 1))),
    "data before headers": (PROTOCOL_ERROR, frame(DATA, 0, 1, b"x")),
    "a stream that is even": (PROTOCOL_ERROR, frame(HEADERS, END_HEADERS, 2, b"\x83")),
    "headers that are interrupted": (
        PROTOCOL_ERROR,
        frame(HEADERS, 0, 1, b"\x83") + frame(PING, 0, 0, bytes(8)),
    ),
    "headers without an end": (
        ENHANCE_YOUR_CALM,
        frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, 0, 1, bytes(60_000)) * 2,
    ),
    "a continuation of nothing": (PROTOCOL_ERROR, frame(CONTINUATION, 0, 1, b"\x83")),
    "headers that cannot be decoded": (COMPRESSION_ERROR, frame(HEADERS, END_HEADERS, 1, b"\xff")),
    "a window of nothing": (FLOW_CONTROL_ERROR, frame(WINDOW_UPDATE, 0, 0, U32.pack(0))),
    "a window without an end": (
        FLOW_CONTROL_ERROR,
        frame(WINDOW_UPDATE, 0, 0, U32.pack((1 << 31) - 1)),
    ),
    "settings of the wrong size": (FRAME_SIZE_ERROR, frame(SETTINGS, 0, 0, b"12345")),
    "a push": (PROTOCOL_ERROR, frame(PUSH_PROMISE, 0, 1, bytes(4))),
    "more padding than content": (
        PROTOCOL_ERROR,
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\x09abc"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_ends_a_connection(maker: Maker, name: str) -> None:
    code, sent = BROKEN[name]
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls)
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        client = Client(reader, writer)
        if sent is None:
            client.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        else:
            client.send(PREFACE, frame(SETTINGS, 0, 0), sent)
        assert await client.goes_away() == code
        writer.close()
        # Another one is served.
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        client = Client(reader, writer)
        client.send(PREFACE, frame(SETTINGS, 0, 0))
        await client.serves(1)
        writer.close()
