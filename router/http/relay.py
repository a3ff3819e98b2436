"""The answer of a replica on its way to the client: its head rebuilt, its body as it came."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router.http.dechunk import Dechunker
from router.http.errors import error_event
from router.http.heads import REASONS, header_lines
from router.http.usage import Usage, find_usage
from router.http.usage_filter import UsageFilter

if TYPE_CHECKING:
    import asyncio

    from router.http.exchange import Exchange
    from router.http.upstream import UpstreamConnection


class Relay:
    """One answer. It looks for the first token and keeps the last reads, where the usage is."""

    __slots__ = (
        "_client",
        "_decoder",
        "_exchange",
        "_last",
        "_last2",
        "_last3",
        "_mark",
        "_upstream",
        "active",
        "bytes_out",
        "first_at",
    )

    def __init__(
        self, exchange: Exchange, upstream: UpstreamConnection, client: asyncio.Transport
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._client = client
        self._mark = exchange.request.rule.first_token_mark
        self._decoder: UsageFilter | Dechunker | None = None
        self._last = self._last2 = self._last3 = b""
        self.active = True
        """Something has come since the last sweep."""
        self.bytes_out = 0
        self.first_at = 0.0
        """When the first token was seen, monotonic; 0 before."""

    def begin(self, body: bytes) -> None:
        """Send the head, and what of the body came with it."""
        exchange, upstream = self._exchange, self._upstream
        request, headers = exchange.request, upstream.headers
        if upstream.chunked:
            if request.old:
                self._decoder = Dechunker()
                request.keep_alive = False
                upstream.drop_header(b"transfer-encoding")
                headers = upstream.headers
            elif exchange.splice >= 0 and upstream.status == 200 and self._events:
                self._decoder = UsageFilter()
        elif upstream.until_close and request.method != b"HEAD":
            request.keep_alive = False
        if not upstream.has_request_id:
            headers += (b"x-request-id", request.request_id)
        if not request.keep_alive:
            headers += (b"connection", b"close")
        elif request.old:
            headers += (b"connection", b"keep-alive")
        if request.explain:
            headers += self._explained()
        head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (
            upstream.status,
            upstream.reason or REASONS.get(upstream.status, b""),
            header_lines(headers),
        )
        if body:
            self.feed(body, head)
        else:
            self._client.write(head)
            if upstream.complete:
                exchange.answered()

    def feed(self, data: bytes, head: bytes = b"") -> None:
        """Body bytes as they were read."""
        self.active = True
        if not self.first_at and self._mark in data:
            self.first_at = now = monotonic()
            self._exchange.first_token(now)
        upstream = self._upstream
        if self._decoder is None:
            self._last3 = self._last2
            self._last2 = self._last
            self._last = data
        else:
            data = self._decoder.feed(data, upstream)
        self.bytes_out += len(data)
        if head:
            data = head + data
        if not upstream.complete:
            if data:
                self._client.write(data)
            return
        if 0 <= upstream.length < self.bytes_out:
            # Line ends behind the body, which the parser tolerates.
            data = data[: upstream.length - self.bytes_out]
            self.bytes_out = upstream.length
        if data:
            self._client.write(data)
        self._exchange.answered()

    def usage(self) -> Usage | None:
        """What the engine reported in the end of its answer."""
        if self._decoder is not None:
            return find_usage(self._decoder.tail)
        tail = self._last
        if self._last2:
            tail = self._last3 + self._last2 + tail
        return find_usage(tail)

    def break_off(self, message: str, in_chunk: bool) -> bool:
        """Tell, in the stream's own form where it has one, that no more will come.

        in_chunk: what was read last ended inside a chunk. Returns whether only a reset can tell it.
        """
        upstream, decoder = self._upstream, self._decoder
        framed = upstream.chunked and not isinstance(decoder, Dechunker)
        if not self._events:
            return not framed and upstream.length < 0
        event = error_event(self._exchange.request.rule.form, message)
        if not framed:
            self._client.write(event)
        elif not in_chunk or (isinstance(decoder, UsageFilter) and not decoder.passing):
            self._client.write(b"%x\r\n%b\r\n" % (len(event), event))
        return False

    @property
    def _events(self) -> bool:
        return self._upstream.type.startswith(b"text/event-stream")

    def _explained(self) -> list[bytes]:
        """Headers that name what was chosen and expected, for a client that asked."""
        placement, replica = self._exchange.placement, self._exchange.replica
        assert placement is not None
        assert replica is not None
        return [
            *(b"x-warmroute-replica", replica.name.encode()),
            *(b"x-warmroute-predicted-tokens", b"%d" % int(placement.held_tokens)),
            *(b"x-warmroute-reason", placement.reason.encode()),
        ]
