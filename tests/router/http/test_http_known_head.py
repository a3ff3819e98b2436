"""A head like the last one is not parsed again, and whatever differs from it in a byte is."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest
from http_world import MakeReplica, MakeRouter, post
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from router.http.client_connection import ClientConnection
from router.http.gateway import Gateway
from router.http.request import Request

PATH = "/v1/chat/completions"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
HEADERS = (
    "User-Agent: x/1",
    "Authorization: Bearer k",
    "Connection: keep-alive",
    "X-Session-Id: s",
    "Via: 1.1 front",
)


def ask(body: bytes) -> bytes:
    """With headers before the length and behind it."""
    before, length, rest = post(PATH, body, *HEADERS).partition(b"Content-Length")
    assert length
    return before + length + rest.replace(b"\r\n", b"\r\nX-Behind: it\r\nAccept: */*\r\n", 1)


PLAIN = ask(BODY)
LENGTH = PLAIN.index(b"%d\r\n" % len(BODY), PLAIN.lower().index(b"content-length"))

BEHIND = PLAIN.index(b"X-Behind")
SPOT = st.integers(0, len(PLAIN) - 1)
PIECE = st.one_of(
    st.binary(max_size=3),
    st.sampled_from(
        (b"\r\n", b"\n", b"0", b"+1", b" ", b"_", b"\r\nExpect: 100-continue\r\nA: ", b"close")
    ),
)


class Transport:
    """Keeps what is written."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, _: str) -> socket.socket:
        return self._connection

    def set_write_buffer_limits(self, _high: int, _low: int) -> None: ...

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Reading(ClientConnection):
    """A client's connection that reads requests, and asks nobody."""

    def __init__(self, gateway: Gateway, connection: socket.socket) -> None:
        super().__init__(gateway, set())
        self.gateway = gateway
        self.seen: list[tuple[object, ...]] = []
        self.parsed = 0
        self.kept = Transport(connection)
        self.connection_made(self.kept)  # type: ignore[arg-type]

    def on_header(self, name: bytes, value: bytes) -> None:
        self.parsed += 1
        super().on_header(name, value)

    def _begin(self, request: Request) -> None:
        names = set(Request.__struct_fields__) - {"started", "content_length", "request_id"}
        given = b"" if request.request_id.startswith(b"wr-") else request.request_id
        self.seen.append((given, *(getattr(request, name) for name in sorted(names))))
        self.gateway.live.body_bytes -= request.body_size

    def read(self, data: bytes) -> list[object]:
        """What comes of these bytes."""
        self.seen.clear()
        self.kept.written = b""
        self.data_received(data)
        written = re.sub(rb"wr-[0-9a-f]+-[0-9a-f]+", b"ID", self.kept.written)
        waits = self.in_request, self._request.body_size if self.in_request else 0
        return [*self.seen, written, self.kept.closed, self._close_after, waits]


@pytest.fixture
async def gateway(replicas: MakeReplica, router: MakeRouter) -> Gateway:
    return (await router(await replicas())).gateway


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def warm(gateway: Gateway, connection: socket.socket) -> Reading:
    """A connection that knows the head."""
    client = Reading(gateway, connection)
    assert len(client.read(PLAIN)) == len(client.read(PLAIN)) == 5
    return client


async def test_a_head_that_differs_in_the_length_alone_is_not_parsed(
    gateway: Gateway, connection: socket.socket
) -> None:
    client = warm(gateway, connection)
    assert client.parsed == PLAIN.partition(b"\r\n\r\n")[0].count(b"\r\n")
    before = client.parsed
    longer = BODY.replace(b"hello", b"hello " * 200)
    found = client.read(ask(longer))
    assert client.parsed == before
    fresh = Reading(gateway, connection)
    assert found == fresh.read(ask(longer))
    # Where it differs each time, nobody looks for what is the same.
    for number in range(20):
        client.read(post(PATH, BODY, f"X-Number: {number}"))
    before = client.parsed
    client.read(post(PATH, BODY, "X-Number: 19"))
    assert client.parsed > before
    for each in (client, fresh):
        each.connection_lost(None)


async def test_any_other_byte_is_read_as_on_a_new_connection(
    gateway: Gateway, connection: socket.socket
) -> None:
    @settings(
        max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(SPOT, st.integers(0, 3), PIECE, st.binary(max_size=4))
    @example(LENGTH, 0, b"0", b"")
    @example(LENGTH, 0, b"+", b"")
    @example(LENGTH, 0, b"1", b"")
    @example(LENGTH, 1, b"", b"")
    @example(LENGTH + 1, 0, b"_", b"")
    @example(len(PLAIN) - len(BODY) - 2, 0, b"Transfer-Encoding: chunked\r\n", b"")
    @example(len(PLAIN) - len(BODY) - 2, 0, b"Content-Length: 1\r\n", b"")
    @example(BEHIND, 8, b"X-Begins", b"")
    @example(BEHIND, 8, b"Expect: ", b"")
    @example(BEHIND + 8, 1, b"\n", b"")
    @example(0, 0, b"\r\n", b"")
    @example(0, 0, b"", PLAIN)
    @example(0, 0, b"", PLAIN[:60])
    def same(at: int, gone: int, new: bytes, behind: bytes) -> None:
        data = PLAIN[:at] + new + PLAIN[at + gone :] + behind
        known, fresh = warm(gateway, connection), Reading(gateway, connection)
        assert known.read(data) == fresh.read(data)
        # And what comes next, in the state that it left.
        assert known.read(PLAIN) == fresh.read(PLAIN)
        for each in (known, fresh):
            each.connection_lost(None)

    held = gateway.live.body_bytes
    same()
    assert gateway.live.body_bytes == held


async def test_nothing_is_read_behind_a_request_that_closes(
    gateway: Gateway, connection: socket.socket
) -> None:
    closing = PLAIN.replace(b"keep-alive", b"close")
    known, fresh = warm(gateway, connection), Reading(gateway, connection)
    for piece in (closing[:40], closing[40:], PLAIN):
        assert known.read(piece) == fresh.read(piece)
    assert fresh.seen == []
    for each in (known, fresh):
        each.connection_lost(None)
