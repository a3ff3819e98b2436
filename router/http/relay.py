"""The answer of a replica on its way to the client: its head rebuilt, its body as it came."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from router.http.errors import error_event
from router.http.event_stream import EventStream
from router.http.events import Scanner, StreamError
from router.http.heads import REASONS, header_lines, outward
from router.http.usage import Usage
from router.http.watching import INFLATABLE, Body, Watch

if TYPE_CHECKING:
    import asyncio

    from router.http.exchange import Exchange
    from router.http.upstream import UpstreamConnection

_LAST_CHUNK = b"0\r\n\r\n"
_PLAIN = frozenset((b"", b"identity"))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Relay:
    """One answer. It watches a stream's events, and any answer for its usage."""

    __slots__ = (
        "_body",
        "_client",
        "_exchange",
        "_head_sent",
        "_scanner",
        "_upstream",
        "_watch",
        "active",
        "bytes_out",
        "first_at",
        "opening",
    )

    def __init__(
        self, exchange: Exchange, upstream: UpstreamConnection, client: asyncio.Transport
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._client = client
        self._scanner: Scanner | None = None
        self._body: Body | None = None
        self._watch: EventStream | Watch | None = None
        self._head_sent = False
        self.active = True
        """Something has come since the last sweep."""
        self.opening = False
        """It is a stream of which the client has got no event: another replica's may follow."""
        self.bytes_out = 0
        self.first_at = 0.0
        """When the first token was seen, monotonic; 0 before."""

    def begin(self, body: bytes) -> None:
        """Send the head, and what of the body came with it."""
        upstream = self._upstream
        self._look(upstream)
        if body:
            self.feed(body)
        else:
            self._client.write(self._head())
            if upstream.complete:
                self._exchange.answered()

    def go_on(self, upstream: UpstreamConnection, body: bytes) -> bool:
        """Another replica's stream follows what the client got of the last one's: its head, and
        comments. False when its answer cannot follow."""
        if not (upstream.status == 200 and upstream.chunked and upstream.events):
            return False
        self._upstream = upstream
        self._look(upstream)
        if body:
            self.feed(body)
        return True

    def feed(self, data: bytes) -> None:
        """Body bytes as they were read."""
        self.active = True
        upstream = self._upstream
        if self._watch is not None:
            data = self._watch.feed(data, upstream)
        if not self.first_at and not self._opened():
            return
        self.bytes_out += len(data)
        length = upstream.length
        if 0 <= length < self.bytes_out:
            # Line ends behind the body, which the parser tolerates.
            data = data[: length - self.bytes_out]
            self.bytes_out = length
        if not self._head_sent and (data or upstream.complete):
            data = self._head() + data
        if data:
            self._client.write(data)
        if upstream.complete:
            self._exchange.answered()

    @property
    def head_sent(self) -> bool:
        """The client has got a part of this answer."""
        return self._head_sent

    @property
    def ended(self) -> bool:
        """The API's own end of an answer has come: the client needs no more of it."""
        scanner = self._scanner
        return scanner is not None and (scanner.ended or scanner.error is not None)

    @property
    def error(self) -> StreamError | None:
        """The error that came as an event."""
        return self._scanner.error if self._scanner is not None else None

    def usage(self) -> Usage | None:
        """What the engine has reported up to now."""
        if self._scanner is not None:
            return self._scanner.usage
        return self._body.usage if self._body is not None else None

    def finish(self, in_chunk: bool) -> bool:
        """The replica left behind the end of its answer: whether the client's is whole."""
        if not self._framed or not self._between_chunks(in_chunk):
            return False
        held = self._held()
        self._client.write(_chunk(held) + _LAST_CHUNK if held else _LAST_CHUNK)
        return True

    def break_off(self, message: str, in_chunk: bool) -> bool:
        """Tell, in the stream's own form where it has one, that no more will come.

        in_chunk: what was read last ended inside a chunk. Returns whether only a reset can tell it.
        """
        if not self._upstream.events:
            return not self._framed and self._upstream.length < 0
        event = error_event(self._exchange.request.rule.form, message)
        if not self._framed:
            self._client.write(event)
        elif self._between_chunks(in_chunk):
            self._client.write(_chunk(self._held() + event))
        return False

    def _look(self, upstream: UpstreamConnection) -> None:
        """Decide what of the body is looked at."""
        exchange = self._exchange
        request, chunked = exchange.request, upstream.chunked
        strips = chunked and request.is_http10
        packed = upstream.encoding in INFLATABLE
        readable = upstream.status == 200 and (packed or upstream.encoding in _PLAIN)
        if readable and upstream.events:
            rule = request.rule
            self._scanner = scanner = Scanner(rule.form, rule.first_token_mark)
            self.opening = True
            if chunked and not strips and not packed:
                self._watch = EventStream(scanner, upstream.pool, exchange.usage_splice_at >= 0)
            else:
                self._watch = Watch(scanner, chunked=chunked, strips=strips, packed=packed)
        elif readable and exchange.prompt is not None:
            self._body = Body()
            self._watch = Watch(self._body, chunked=chunked, strips=strips, packed=packed)
        elif strips:
            self._watch = Watch(None, chunked=True, strips=True)

    def _opened(self) -> bool:
        """Look for the first event and the first token. False when the request went elsewhere."""
        scanner, exchange = self._scanner, self._exchange
        if scanner is None:
            exchange.free_body()
            self.first_at = now = monotonic()
            exchange.first_token(now)
            return True
        if self.opening:
            if scanner.error is not None and exchange.failed_first():
                return False
            self.opening = not (scanner.began or scanner.error is not None)
            if not self.opening:
                exchange.free_body()
        if scanner.token:
            self.first_at = now = monotonic()
            exchange.first_token(now)
        return True

    def _head(self) -> bytes:
        """The answer's head, rebuilt."""
        self._head_sent = True
        exchange, upstream = self._exchange, self._upstream
        request = exchange.request
        if upstream.chunked:
            if request.is_http10:
                request.keep_alive = False
                upstream.drop_header(b"transfer-encoding")
        elif upstream.until_close and request.method != b"HEAD":
            request.keep_alive = False
        headers = upstream.headers
        if upstream.events:
            upstream.drop_header(b"x-accel-buffering")
            # So that an nginx in front passes events on as they come.
            headers = [*upstream.headers, b"x-accel-buffering", b"no"]
        if 300 <= upstream.status < 400:
            assert exchange.replica is not None
            headers = outward(headers, exchange.replica.host_header, exchange.replica.prefix)
        if not upstream.has_request_id:
            headers += (b"x-request-id", request.request_id)
        if not request.keep_alive:
            headers += (b"connection", b"close")
        elif request.is_http10:
            headers += (b"connection", b"keep-alive")
        if request.explain:
            headers += self._explained()
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (
            upstream.status,
            upstream.reason or REASONS.get(upstream.status, b""),
            header_lines(headers),
        )

    @property
    def _framed(self) -> bool:
        """The client gets chunks."""
        return self._upstream.chunked and not self._exchange.request.is_http10

    def _between_chunks(self, in_chunk: bool) -> bool:
        """Whether what the client has got ends with a whole chunk."""
        return not in_chunk or (isinstance(self._watch, EventStream) and self._watch.filters)

    def _held(self) -> bytes:
        """Whole events that have come and were held back."""
        watch = self._watch
        return watch.rest() if isinstance(watch, EventStream) and watch.filters else b""

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
