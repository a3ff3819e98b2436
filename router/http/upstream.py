"""The replicas' side of the gateway: pooled connections, and what is read from them."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from router.http.heads import HOP_BY_HOP

if TYPE_CHECKING:
    from router.fleet.replica import Replica
    from router.http.exchange import Exchange
    from router.http.gateway import Gateway

# A response head larger than this is no answer of an engine.
_HEAD_MAX = 64 * 1024


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica; it serves one exchange at a time.

    The mutable state is the response being parsed. Body bytes are not decoded here: they are relayed as
    they came, and the parser only watches where the message ends and that nothing follows it.
    """

    __slots__ = (
        "_head",
        "_interim",
        "_messages",
        "_parser",
        "_pool",
        "complete",
        "exchange",
        "head_complete",
        "in_chunk",
        "keep_alive",
        "length",
        "lines",
        "has_request_id",
        "chunked",
        "idle_since",
        "reason",
        "reused",
        "status",
        "transport",
        "type",
    )

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.exchange: Exchange | None = None
        self.reused = False
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)

    def begin(self, exchange: Exchange) -> None:
        """Serve this exchange next."""
        self.exchange = exchange
        self._head = b""
        self._interim = 0
        self._messages = 0
        self.head_complete = False
        self.complete = False
        self.in_chunk = False

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = transport = cast(asyncio.Transport, transport)
        self._pool.count += 1

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
            exchange.switched(data[exc.args[0] :])
            return
        except httptools.HttpParserError as exc:
            exchange.broken(f"the replica's answer is not HTTP: {exc}")
            return
        if self._messages - self._interim > 1:
            exchange.broken("the replica sent more than one answer")
            return
        if exchange.head_sent:
            exchange.relay(data)
        elif self.head_complete:
            exchange.respond(self._body_of(data))
        else:
            self._head += data
            if len(self._head) > _HEAD_MAX:
                exchange.broken("the head of the replica's answer is too large")

    def _body_of(self, data: bytes) -> bytes:
        """What of the bytes read up to now is body: the rest behind the final head."""
        whole = self._head + data if self._head else data
        self._head = b""
        at = 0
        for _ in range(self._interim + 1):
            # The parser takes no other line end, and no empty line inside a head.
            at = whole.index(b"\r\n\r\n", at) + 4
        return whole[at:]

    def eof_received(self) -> bool:
        """The replica closed its side."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        exchange, self.exchange = self.exchange, None
        self._parser = None
        self._pool.count -= 1
        if exchange is not None:
            exchange.upstream_lost(exc)

    def pause_writing(self) -> None:
        """The replica reads slowly; the request is in memory already and there is nothing to hold back."""

    def resume_writing(self) -> None:
        """The replica has caught up."""

    # -- parser

    def on_message_begin(self) -> None:
        """A status line begins."""
        self._messages += 1
        self.lines: list[bytes] = []
        self.reason = b""
        self.length = -1
        self.chunked = False
        self.has_request_id = False
        self.type = b""

    def on_status(self, status: bytes) -> None:
        """The reason phrase, or a piece of it."""
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        low = name.lower()
        if low in HOP_BY_HOP:
            if low == b"transfer-encoding":
                self.chunked = True
                # Another coding under the chunks is the client's to undo.
                self.lines.append(b"%b: %b" % (name, value))
            return
        self.lines.append(b"%b: %b" % (name, value))
        if low == b"content-length":
            self.length = int(value)
        elif low == b"content-type":
            self.type = value
        elif low == b"x-request-id":
            self.has_request_id = True

    def on_headers_complete(self) -> None:
        """A head is whole; an interim one (1xx) is dropped, the router answers for itself."""
        status = self._parser.get_status_code()
        if status < 200 and status != 101:
            self._interim += 1
        else:
            self.status = status
            self.head_complete = True

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self.in_chunk = True

    def on_chunk_complete(self) -> None:
        """A chunk is whole."""
        self.in_chunk = False

    def on_message_complete(self) -> None:
        """The answer is whole (an interim one too)."""
        if self.head_complete:
            self.complete = True
            self.keep_alive = self._parser.should_keep_alive()

    @property
    def until_close(self) -> bool:
        """The body has no length and ends with the connection."""
        return not self.chunked and self.length < 0 and self.status not in (204, 304)

    # -- after

    @property
    def touched(self) -> bool:
        """Anything of an answer has come."""
        return bool(self._head) or self._messages > 0

    def release(self) -> None:
        """The exchange is over; keep the connection if its next user can trust it."""
        self.exchange = None
        if self.complete and self.keep_alive and not self.transport.is_closing():
            self._pool.give(self)
        else:
            self.transport.abort()

    def drop(self) -> None:
        """Close at once, so that the engine stops working on what was asked."""
        self.exchange = None
        self.transport.abort()


class Pool:
    """The idle connections to one replica, the most recently used first."""

    __slots__ = ("_gateway", "_idle", "count", "replica")

    def __init__(self, gateway: Gateway, replica: Replica) -> None:
        self._gateway = gateway
        self.replica = replica
        self._idle: deque[UpstreamConnection] = deque()
        self.count = 0
        """Connections open, busy ones included."""

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
        connection.idle_since = monotonic()
        self._idle.append(connection)

    async def connect(self) -> UpstreamConnection:
        """A new connection, not in the pool.

        Raises:
            OSError: refused, unreachable, name not found, TLS failure.
            TimeoutError: not within connect_timeout.
        """
        gateway, replica = self._gateway, self.replica
        async with asyncio.timeout(gateway.settings.connect_timeout):
            _, connection = await gateway.loop.create_connection(
                lambda: UpstreamConnection(self),
                replica.host,
                replica.port,
                ssl=gateway.replica_tls if replica.tls else None,
                server_hostname=replica.host if replica.tls else None,
            )
        return connection

    def sweep(self, idle_before: float) -> None:
        """Close connections idle since before this time, before the replica's server does."""
        idle = self._idle
        while idle and idle[0].idle_since < idle_before:
            connection = idle.popleft()
            if not connection.transport.is_closing():
                connection.transport.close()

    def close(self) -> None:
        """Close all idle connections."""
        self.sweep(float("inf"))
