"""The replicas' side of the gateway: pooled connections, and what is read from them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, cast

import httptools
import msgspec

from router.http.request import HOP_BY_HOP, Request, without_nominated
from router.identity import VIA

if TYPE_CHECKING:
    import ssl

    from router.fleet.fleet import FaultReason

_LINE = b"%b: %b\r\n"
_LINES = [_LINE * count for count in range(48)]


def header_lines(headers: list[bytes]) -> bytes:
    """name, value, name, value, ... as lines, each ended by CRLF; one formatting for all."""
    count = len(headers) >> 1
    form = _LINES[count] if count < len(_LINES) else _LINE * count
    return form % tuple(headers)


_IDLE: Final = 60
"""Seconds of silence after which the other side is asked whether it is there."""
_EVERY: Final = 15
_TIMES: Final = 4


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel look after it. What a listening socket is told holds for its connections."""
    # A side that is gone by now is found out by itself.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _EVERY)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TIMES)


class RetryBudget:
    """A token bucket: each request adds `share`, each retry takes one.

    It begins with, and holds at most, `reserve` retries, so that little traffic can be retried too.
    """

    __slots__ = ("_left", "_reserve", "share")

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self.share = share
        self._reserve = reserve if share else 0.0
        self._left = self._reserve

    def earn(self) -> None:
        """A request has come."""
        left = self._left + self.share
        self._left = left if left < self._reserve else self._reserve

    def take(self, *, free: bool = False) -> bool:
        """Whether one more retry is allowed; takes it if so.

        free: it counts towards nothing, since what made it cannot happen again. Where there is no
        budget at all there are no such retries either.
        """
        if free and self._reserve:
            return True
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


# A response head larger than this is no answer of an engine.
_HEAD_MAX = 64 * 1024

_LOOKED_AT = HOP_BY_HOP | {
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"x-accel-buffering",
    b"x-request-id",
}


RANK = b"x-data-parallel-rank"
ASK_USAGE = b'"stream_options":{"include_usage":true},'
_VIA = f"via: {VIA}\r\n".encode()
# Bodies up to this size go out in one piece with their head: copying them costs less than a second
# buffer.
_ONE_PIECE = 16_384


def _without_rank(headers: list[bytes]) -> list[bytes]:
    """Without the rank a client asks for: where the router tells ranks apart, it names one."""
    pairs = zip(headers[::2], headers[1::2], strict=True)
    return [part for pair in pairs if pair[0].lower() != RANK for part in pair]


class Endpoint(Protocol):
    """Where requests are sent: a replica, or a target outside of the fleet."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def tls(self) -> bool: ...
    @property
    def prefix(self) -> str: ...
    @property
    def host_header(self) -> bytes: ...
    @property
    def rank_header(self) -> bytes:
        """What tells it which of its engines is meant: a whole line; empty for none."""
        ...


class Failure(msgspec.Struct, gc=False, frozen=True):
    """Why an attempt at a replica failed, and what the client is told if no other succeeds."""

    status: int
    outcome: str
    reason: FaultReason | None
    """None where the router is to blame, and no replica."""
    what: str
    """What the replica did, for a sentence that begins with its name."""


class Asker(Protocol):
    """Who sent a request over a connection, and is told what comes back."""

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head of the answer has come, and this much of its body."""

    def switched(self, rest: bytes) -> None:
        """The replica has switched protocols, and sent this behind its head."""

    def broken(self, why: str) -> None:
        """What the replica sends is not HTTP."""

    def upstream_lost(self, exc: Exception | None) -> None:
        """The connection has closed."""


class Sink(Protocol):
    """Takes an answer's body."""

    def feed(self, data: bytes) -> None:
        """Body bytes as they were read."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica; it serves one exchange at a time.

    The mutable state is the response being parsed. Body bytes are not decoded here: they are
    relayed as they came, and the parser only watches where the message ends and that nothing
    follows it.
    """

    __slots__ = (
        "_begun",
        "_connection",
        "_head",
        "_head_passed",
        "_hung_up",
        "_interim",
        "_parser",
        "asker",
        "chunked",
        "chunks",
        "complete",
        "encoding",
        "events",
        "has_buffering",
        "has_request_id",
        "head_complete",
        "headers",
        "idle_since",
        "in_chunk",
        "keep_alive",
        "length",
        "pool",
        "reason",
        "relay",
        "reused",
        "status",
        "transport",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.asker: Asker | None = None
        self.relay: Sink | None = None
        """Where body bytes go, once the head has come."""
        self.reused = False
        self._hung_up = False
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def send(
        self,
        asker: Asker,
        request: Request,
        replica: Endpoint,
        splice_at: int,
        splice: bytes = ASK_USAGE,
    ) -> None:
        """Write a request, its head rebuilt and its body as it came; the answer is the asker's.

        splice: more members for the body: the request for usage, or where to fetch KV blocks.
        splice_at: where in the body they go; -1 for nowhere.
        """
        self.asker = asker
        self.relay = None
        self._head = b""
        self._interim = 0
        self._begun = False
        self._head_passed = False
        self.head_complete = False
        self.complete = False
        self.in_chunk = False
        self.chunks = 0
        # The body may grow by what is put in, so that its length is always told anew.
        body = request.body
        if splice_at >= 0:
            length = b"content-length: %d\r\n" % (len(body) + len(splice))
        elif body or request.method not in (b"GET", b"HEAD"):
            length = b"content-length: %d\r\n" % len(body)
        else:
            length = b""
        headers = request.headers
        if replica.rank_header:
            headers = _without_rank(headers)
        head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b%b%b%bx-request-id: %b\r\n\r\n" % (
            request.method,
            replica.prefix.encode(),
            request.target,
            replica.host_header,
            header_lines(headers),
            _VIA,
            replica.rank_header,
            length,
            b"connection: upgrade\r\nupgrade: %b\r\n" % request.upgrade if request.upgrade else b"",
            request.request_id,
        )
        transport = self.transport
        if splice_at >= 0:
            view = memoryview(body)
            parts = (head, view[:splice_at], splice, view[splice_at:])
            if len(body) < _ONE_PIECE:
                transport.write(b"".join(parts))
            else:
                transport.writelines(parts)
        elif len(body) < _ONE_PIECE:
            transport.write(head + body if body else head)
        else:
            transport.writelines((head, body))

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Bytes from the replica."""
        asker = self.asker
        if asker is None:
            # Nothing was asked: a closing notice, or a replica that is out of step.
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            asker.switched(data[exc.args[0] :])
            return
        except httptools.HttpParserError as exc:
            asker.broken(f"sent what is not HTTP: {exc.__context__ or exc}")
            return
        if self.relay is not None:
            self.relay.feed(data)
        elif self.head_complete:
            asker.respond(self, data if self._head_passed else self._body_of(data))
        else:
            self._head += data
            if len(self._head) > _HEAD_MAX:
                asker.broken("sent a head that is too large")

    def _body_of(self, data: bytes) -> bytes:
        """What of the bytes read up to now is body: the rest behind the final head."""
        whole = self._head + data if self._head else data
        self._head = b""
        self._head_passed = True
        at = 0
        for _ in range(self._interim + 1):
            # Empty lines may come before a head. The parser takes no other line end, and no empty
            # line inside a head.
            while whole[at] in b"\r\n":
                at += 1
            at = whole.index(b"\r\n\r\n", at) + 4
        return whole[at:]

    def eof_received(self) -> bool:
        """The replica closed its side."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        asker, self.asker = self.asker, None
        # The parser knows this connection and this connection the parser: break the circle.
        self._parser = None  # type: ignore[assignment]
        if asker is not None:
            asker.upstream_lost(exc)

    def never_was(self) -> None:
        """Connecting has failed or was given up, at whatever stage: break all circles."""
        self._parser = None  # type: ignore[assignment]
        self.transport = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        """The replica reads slowly; the request is in memory and nothing can be held back."""

    def resume_writing(self) -> None:
        """The replica has caught up."""

    # -- parser

    def on_message_begin(self) -> None:
        """A status line begins."""
        if self.head_complete:
            raise ValueError("more than one answer")
        self._begun = True
        self.headers: list[bytes] = []
        self._connection = b""
        self.reason = b""
        self.length = -1
        self.chunked = False
        self.has_request_id = False
        self.has_buffering = False
        self.encoding = b""
        """Content-Encoding, lower case."""
        self.events = False
        """The body is a stream of events."""

    def on_status(self, status: bytes) -> None:
        """The reason phrase, or a piece of it."""
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header, or a trailer, which goes its way with the body."""
        if self.head_complete:
            return
        low = name.lower()
        if low in _LOOKED_AT:
            if low == b"transfer-encoding":
                if value.strip().lower() != b"chunked":
                    raise ValueError("a transfer coding that was not asked for")
                self.chunked = True
            elif low == b"content-length":
                self.length = int(value)
            elif low == b"content-type":
                self.events = value[:17].lower() == b"text/event-stream"
            elif low == b"content-encoding":
                self.encoding += value.strip().lower()
            elif low == b"x-request-id":
                self.has_request_id = True
            elif low == b"x-accel-buffering":
                self.has_buffering = True
            else:
                if low == b"connection":
                    self._connection += b"," + value.lower()
                return
        self.headers.append(name)
        self.headers.append(value)

    def on_headers_complete(self) -> None:
        """A head is whole; an interim one (1xx) is dropped, the router answers for itself."""
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            self._interim += 1
        elif not self.head_complete:
            self.status = status
            self.head_complete = True
            if self._connection:
                self.headers = without_nominated(self.headers, self._connection)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self.in_chunk = True
        self.chunks += 1

    def on_chunk_complete(self) -> None:
        """A chunk is whole."""
        self.in_chunk = False

    def on_message_complete(self) -> None:
        """The answer is whole (an interim one too)."""
        if self.head_complete:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    @property
    def heads_stream(self) -> bool:
        """What has come is the head of a stream of events, none of which is there yet."""
        return self.status == 200 and self.chunked and not self.complete and self.events

    def more_within(self, size: int) -> bool:
        """Whether the rest of the body comes, and may be as small as this."""
        return not self.complete and size > 0 and (self.chunked or 0 <= self.length < size)

    @property
    def until_close(self) -> bool:
        """The body has no length and ends with the connection."""
        return not self.chunked and self.length < 0 and self.status not in (204, 304)

    def drop_header(self, name: bytes) -> None:
        """Do not pass this header on."""
        pairs = zip(self.headers[::2], self.headers[1::2], strict=True)
        self.headers = [part for pair in pairs if pair[0].lower() != name for part in pair]

    # -- after

    @property
    def touched(self) -> bool:
        """Anything of an answer has come."""
        return self._begun

    def release(self) -> None:
        """The exchange is over; keep the connection if its next user can trust it."""
        self.asker = self.relay = None
        usable = self.complete and self.keep_alive and not self._hung_up
        if usable and not self.transport.is_closing():
            self.pool.give(self)
        else:
            self.transport.abort()

    def hang_up(self) -> bool:
        """Send no more, and read on: an engine stops at the end of what it reads. False where the
        transport can only close as a whole, as with TLS."""
        if not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        self._hung_up = True
        return True

    def drop(self) -> None:
        """Close at once, so that the engine stops working on what was asked."""
        self.asker = self.relay = None
        self.transport.abort()


class Pool:
    """The idle connections to one replica, the most recently used first."""

    __slots__ = ("_idle", "_loop", "_retired", "fingerprint", "replica")

    def __init__(self, replica: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.replica = replica
        self.fingerprint: bytes | None = None
        """The engine's `system_fingerprint` as JSON; empty where it has none, None: not known."""
        self._idle: deque[UpstreamConnection] = deque()
        self._retired = False

    def take(self) -> UpstreamConnection | None:
        """An idle connection that is still open."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.transport.is_closing():
                connection.reused = True
                return connection
        return None

    def give(self, connection: UpstreamConnection) -> None:
        """Back from an exchange."""
        if self._retired:
            connection.transport.close()
            return
        connection.idle_since = monotonic()
        self._idle.append(connection)

    async def connect(self, within: float, tls: ssl.SSLContext | None) -> UpstreamConnection:
        """A new connection, not in the pool.

        Raises:
            OSError: refused, unreachable, name not found, TLS failure.
            TimeoutError: not within so many seconds.
        """
        replica = self.replica
        connection = UpstreamConnection(self)
        try:
            async with asyncio.timeout(within):
                await self._loop.create_connection(
                    lambda: connection,
                    replica.host,
                    replica.port,
                    ssl=tls if replica.tls else None,
                    server_hostname=replica.host if replica.tls else None,
                )
        except BaseException:
            connection.never_was()
            raise
        return connection

    def sweep(self, idle_before: float) -> None:
        """Close connections idle since before this time, before the replica's server does."""
        idle = self._idle
        while idle and idle[0].idle_since < idle_before:
            connection = idle.popleft()
            if not connection.transport.is_closing():
                connection.transport.close()

    def clear(self) -> None:
        """The engine is another one now: close all idle connections."""
        self.fingerprint = None
        self.sweep(float("inf"))

    def retire(self) -> None:
        """The replica left: keep no connection from now on."""
        self._retired = True
        self.sweep(float("inf"))
