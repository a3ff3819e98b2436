"""The replicas' side of the gateway: pooled connections, and what is read from them."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from router.http.heads import HOP_BY_HOP
from router.http.keepalive import keep_alive
from router.http.request import without_nominated

if TYPE_CHECKING:
    from router.fleet.replica import Replica
    from router.http.exchange import Exchange
    from router.http.gateway import Gateway
    from router.http.relay import Relay

# A response head larger than this is no answer of an engine.
_HEAD_MAX = 64 * 1024

_LOOKED_AT = HOP_BY_HOP | {
    b"content-encoding",
    b"content-length",
    b"content-type",
    b"x-request-id",
}


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
        "_interim",
        "_parser",
        "chunked",
        "chunks",
        "complete",
        "encoding",
        "events",
        "exchange",
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
        self.exchange: Exchange | None = None
        self.relay: Relay | None = None
        """Where body bytes go, once the head has come."""
        self.reused = False
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def begin(self, exchange: Exchange) -> None:
        """Serve this exchange next."""
        self.exchange = exchange
        self.relay = None
        self._head = b""
        self._interim = 0
        self._begun = False
        self._head_passed = False
        self.head_complete = False
        self.complete = False
        self.in_chunk = False
        self.chunks = 0

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Bytes from the replica."""
        exchange = self.exchange
        if exchange is None:
            # Nothing was asked: a closing notice, or a replica that is out of step.
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            if exchange.request.upgrade:
                exchange.switched(data[exc.args[0] :])
            else:
                exchange.broken("switched protocols unasked")
            return
        except httptools.HttpParserError as exc:
            exchange.broken(f"sent what is not HTTP: {exc.__context__ or exc}")
            return
        if self.relay is not None:
            self.relay.feed(data)
        elif self.head_complete:
            exchange.respond(self, data if self._head_passed else self._body_of(data))
        else:
            self._head += data
            if len(self._head) > _HEAD_MAX:
                exchange.broken("sent a head that is too large")

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
        exchange, self.exchange = self.exchange, None
        # The parser knows this connection and this connection the parser: break the circle.
        self._parser = None  # type: ignore[assignment]
        if exchange is not None:
            exchange.upstream_lost(exc)

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
        self.exchange = self.relay = None
        if self.complete and self.keep_alive and not self.transport.is_closing():
            self.pool.give(self)
        else:
            self.transport.abort()

    def drop(self) -> None:
        """Close at once, so that the engine stops working on what was asked."""
        self.exchange = self.relay = None
        self.transport.abort()


class Pool:
    """The idle connections to one replica, the most recently used first."""

    __slots__ = ("_gateway", "_idle", "_retired", "fingerprint", "replica")

    def __init__(self, gateway: Gateway, replica: Replica) -> None:
        self._gateway = gateway
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

    async def connect(self) -> UpstreamConnection:
        """A new connection, not in the pool.

        Raises:
            OSError: refused, unreachable, name not found, TLS failure.
            TimeoutError: not within connect_timeout.
        """
        gateway, replica = self._gateway, self.replica
        connection = UpstreamConnection(self)
        try:
            async with asyncio.timeout(gateway.settings.connect_timeout):
                await gateway.loop.create_connection(
                    lambda: connection,
                    replica.host,
                    replica.port,
                    ssl=gateway.replica_tls if replica.tls else None,
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
