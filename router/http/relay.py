"""The answer of a replica on its way to the client: its head rebuilt, its body as it came."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.http.events import LARGEST, Kind, Scanner, StreamError, Usage, event_data
from router.http.local_reply import REASONS, error_event
from router.http.queueing import queue_headers
from router.http.upstream import header_lines
from router.http.watching import INFLATABLE, Body, Watch

if TYPE_CHECKING:
    import asyncio

    from router.fleet.replica import Replica
    from router.http.request import Request
    from router.http.upstream import UpstreamConnection
    from router.prompt import Prompt
    from router.queue.ticket import Ticket
    from router.scheduling.placer import Placement
    from router.tenants.accounts import Reservation


class Engine(Protocol):
    """What is known of the engine that sends the stream."""

    fingerprint: bytes | None
    """Its `system_fingerprint` as JSON, empty where it has none, None while it is not known."""


class _Stamp(msgspec.Struct, gc=False):
    system_fingerprint: msgspec.Raw = msgspec.Raw()


# A token's event of OpenAI's form ends with it, and a few fields that vLLM puts behind it.
_GOES_ON = b'"finish_reason":null'
_GOES_ON_WITHIN = 96

_decode_stamp = msgspec.json.Decoder(_Stamp).decode


class EventStream:
    """The state of one stream: how far it is in its chunks, and what is held back."""

    __slots__ = (
        "_engine",
        "_kinds",
        "_left",
        "_line",
        "_over",
        "_quick",
        "_raw",
        "_stamps",
        "_text",
        "filters",
        "scanner",
    )

    def __init__(self, scanner: Scanner, engine: Engine, filters: bool) -> None:
        self.scanner = scanner
        self._engine = engine
        self.filters = filters
        """Usage events are taken out, and the client has got whole chunks and whole events only."""
        self._stamps = filters and engine.fingerprint != b""
        self._quick = False
        self._over = False
        self._left = 0
        self._line = b""
        self._raw = b""
        self._text = bytearray()
        self._kinds: list[tuple[int, int]] = []

    def feed(self, data: bytes, upstream: UpstreamConnection) -> bytes:
        """Raw body bytes as read -> what of them (and of earlier ones) goes to the client now.

        upstream: its parser has seen data.
        """
        chunks, upstream.chunks = upstream.chunks, 0
        if self._over:
            return data
        if self._quick and data[-4:] == b"\n\n\r\n" and not upstream.in_chunk:
            if chunks == 1:
                # One event of one line, and a token of a choice that goes on: vLLM puts nothing
                # else with it where the client did not ask. It is looked for where it is in such
                # an event: to search it all takes longer than the rest of the relay.
                if (
                    self.filters
                    and data.rfind(_GOES_ON, -_GOES_ON_WITHIN) >= 0
                    and data.count(b"\n") == 4
                ):
                    return data
                if not self._tells(data):
                    return data
            # Where each chunk ends as an event does, none tears a mark apart.
            elif data.count(b"\r\n") == 2 * data.count(b"\n\n\r\n") and not self._tells(data):
                return data
        filtered = self._walk(data)
        # The first token is waited for event by event.
        self._quick = self.scanner.token and not (
            self._left or self._line or self._text or self.scanner.torn
        )
        return filtered

    def rest(self) -> bytes:
        """The whole events that were held back, when the stream has broken."""
        return self._edited()[0]

    def _walk(self, read: bytes) -> bytes:
        scanner = self.scanner
        data = self._line + read if self._line else read
        self._line = b""
        out: list[bytes] = []
        at, begin, end = 0, 0, len(data)
        while at < end:
            left = self._left
            if left > 2:
                stop = min(end, at + left - 2)
                piece = data[at:stop]
                kinds = scanner.scan(piece)
                if self.filters:
                    self._text += piece
                    self._kinds += kinds
                self._left -= stop - at
                at = stop
            elif left:
                # The line end behind a chunk.
                stop = min(end, at + left)
                self._left -= stop - at
                at = stop
                if self.filters and not self._left and not scanner.torn and not self._waits():
                    out.append(self._flush(data[begin:at]))
                    begin = at
            else:
                if scanner.token and not self._text and not scanner.torn:
                    at = self._skip(data, at)
                    if self.filters and at > begin:
                        out.append(self._flush(data[begin:at]))
                        begin = at
                line_end = data.find(b"\n", at)
                if line_end < 0:
                    self._line = data[at:]
                    end = at
                    break
                # The parser has checked the framing already; an extension after ';' is allowed.
                size = int(data[at:line_end].split(b";", 1)[0], 16)
                if not size:
                    # With trailers behind it or without, nothing more is events.
                    self._kinds += scanner.finish()
                    self._over = True
                    if not self.filters:
                        return read
                    self.filters = False
                    out += (self._flush(data[begin:at]), data[at:])
                    return b"".join(out)
                self._left = size + 2
                at = line_end + 1
        if not self.filters:
            return read
        self._raw += data[begin:end]
        if len(self._raw) > LARGEST:
            self._let_through(out)
        return b"".join(out)

    def _let_through(self, out: list[bytes]) -> None:
        """Events as large as this carry something other than tokens: pass them on."""
        out += (self._raw, self._line)
        self._raw = b""
        self._text.clear()
        self._kinds.clear()
        self.filters = self._stamps = False

    def _tells(self, data: bytes) -> bool:
        """Whether whole events in whole chunks may have to be looked at."""
        return self.scanner.tells(data) or (
            self._stamps and (b'finish_reason":"' in data or b'finish_reason": "' in data)
        )

    def _skip(self, data: bytes, at: int) -> int:
        """Where the last whole chunk ends of a read, of which one begins here, if each chunk is an
        event that says nothing; else here."""
        stop = data.rfind(b"\n\n\r\n", at) + 4
        if stop < at + 8:
            return at
        whole = data[at:stop]
        count = whole.count(b"\n\n\r\n")
        if whole.count(b"\r\n") != 2 * count or self._tells(whole):
            return at
        # That may have been inside a chunk: the last one tells.
        last = whole.rfind(b"\n\n\r\n", 0, -4) + 4 if count > 1 else 0
        line_end = whole.find(b"\r\n", last)
        try:
            size = int(whole[last:line_end], 16)
        except ValueError:
            return at
        return stop if line_end + 2 + size + 2 == len(whole) else at

    def _waits(self) -> bool:
        """Whether what came must wait for the usage event.

        Where usage is asked for, vLLM puts the engine's fingerprint there, instead of into the last
        event of each choice.
        """
        if not self._stamps or self._engine.fingerprint is not None or self.scanner.ended:
            return False
        found = {kind for kind, _ in self._kinds}
        return Kind.LAST in found and Kind.USAGE not in found

    def _flush(self, raw: bytes) -> bytes:
        """Whole chunks of whole events, these and those held back, as they go to the client."""
        kept, edited = self._edited()
        raw = self._raw + raw
        self._raw = b""
        self._text.clear()
        self._kinds.clear()
        if not edited:
            return raw
        return b"%x\r\n%b\r\n" % (len(kept), kept) if kept else b""

    def _edited(self) -> tuple[bytes, bool]:
        """The events held back as without usage, and whether that makes a difference."""
        text, engine = self._text, self._engine
        at = 0
        for kind, size in self._kinds:
            if kind == Kind.USAGE:
                engine.fingerprint = _fingerprint(bytes(text[at : at + size]))
            at += size
        kept: list[bytes] = []
        edited = False
        at = 0
        for kind, size in self._kinds:
            event = bytes(text[at : at + size])
            at += size
            if kind == Kind.USAGE:
                edited = True
                continue
            if kind == Kind.LAST and engine.fingerprint and b'"system_fingerprint"' not in event:
                brace = event.rindex(b"}")
                stamp = b',"system_fingerprint":' + engine.fingerprint
                event = event[:brace] + stamp + event[brace:]
                edited = True
            kept.append(event)
        return b"".join(kept), edited


def _fingerprint(event: bytes) -> bytes:
    try:
        found = bytes(_decode_stamp(event_data(event) or b"{}").system_fingerprint)
    except msgspec.DecodeError:
        return b""
    return b"" if found == b"null" else found


_EVENT = b"data:"
_LAST_CHUNK = b"0\r\n\r\n"
_PLAIN = frozenset((b"", b"identity"))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Answered(Protocol):
    """Whose answer it is, and is told how it goes."""

    request: Request
    prompt: Prompt | None
    placement: Placement | None
    ticket: Ticket | None
    replica: Replica | None
    usage_splice_at: int
    reservation: Reservation | None

    def rate_headers(self) -> bytes:
        """How the client's limits stand, as lines of a head."""

    def diagnosis_headers(self) -> list[bytes]:
        """What is foreseen to be computed again, and why: name, value, ..."""

    def first_token(self, now: float) -> None:
        """The first token has come."""

    def failed_first(self) -> bool:
        """The stream begins with an error. Returns whether the request went elsewhere."""

    def relaying(self) -> None:
        """The client gets a part of this answer, which no other can go on with."""

    def answered(self) -> None:
        """The answer is whole and has been handed to the client's transport."""


class Relay:
    """One answer. It watches a stream's events, and any answer for its usage."""

    __slots__ = (
        "_body",
        "_client",
        "_exchange",
        "_head_sent",
        "_upstream",
        "active",
        "bytes_out",
        "events",
        "first_at",
        "opening",
        "scanner",
        "watch",
    )

    def __init__(
        self, exchange: Answered, upstream: UpstreamConnection, client: asyncio.Transport
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._client = client
        self.scanner: Scanner | None = None
        """Reads a stream's events; None where the answer is none."""
        self._body: Body | None = None
        self.watch: EventStream | Watch | None = None
        """Looks at what comes, and makes of it what the client gets."""
        self._head_sent = False
        self.active = True
        """Something has come since the last sweep."""
        self.opening = False
        """It is a stream of which the client has got no event: another replica's may follow."""
        self.bytes_out = 0
        self.events = 0
        """Where limits hold: events of a stream that the client got, about one for a token."""
        self.first_at = 0.0
        """When the first token was seen, monotonic; 0 before."""
        self._look(upstream)

    def begin(self, body: bytes) -> None:
        """Send the head, and what of the body came with it."""
        if body:
            self.feed(body)
        else:
            self._client.write(self._head())
            if self._upstream.complete:
                self._exchange.answered()

    def go_on(self, upstream: UpstreamConnection) -> bool:
        """Another replica's stream follows what the client got of the last one's: its head, and
        comments. False when its answer cannot follow."""
        if not (upstream.status == 200 and upstream.chunked and upstream.events):
            return False
        self._upstream = upstream
        self._look(upstream)
        return True

    def feed(self, data: bytes) -> None:
        """Body bytes as they were read."""
        self.active = True
        upstream = self._upstream
        if self.watch is not None:
            data = self.watch.feed(data, upstream)
        if not self.first_at and not self._opened():
            return
        if self._exchange.reservation is not None:
            self.events += data.count(_EVENT)
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
        scanner = self.scanner
        return scanner is not None and (scanner.ended or scanner.error is not None)

    @property
    def error(self) -> StreamError | None:
        """The error that came as an event."""
        return self.scanner.error if self.scanner is not None else None

    def usage(self) -> Usage | None:
        """What the engine has reported up to now."""
        if self.scanner is not None:
            return self.scanner.usage
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
            self.scanner = scanner = Scanner(rule.form, rule.first_token_mark)
            self.opening = True
            if chunked and not strips and not packed:
                self.watch = EventStream(scanner, upstream.pool, exchange.usage_splice_at >= 0)
            else:
                self.watch = Watch(scanner, chunked=chunked, strips=strips, packed=packed)
        elif readable and (exchange.prompt is not None or exchange.reservation is not None):
            self._body = Body()
            self.watch = Watch(self._body, chunked=chunked, strips=strips, packed=packed)
        elif strips:
            self.watch = Watch(None, chunked=True, strips=True)

    def _opened(self) -> bool:
        """Look for the first event and the first token. False when the request went elsewhere."""
        scanner, exchange = self.scanner, self._exchange
        if scanner is None:
            exchange.relaying()
        elif self.opening:
            if scanner.error is not None and exchange.failed_first():
                return False
            self.opening = not (scanner.began or scanner.error is not None)
            if not self.opening:
                exchange.relaying()
        if scanner is None or scanner.token:
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
            # So that an nginx in front passes events on as they come.
            if upstream.has_buffering:
                upstream.drop_header(b"x-accel-buffering")
                headers = upstream.headers
            headers += (b"x-accel-buffering", b"no")
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
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (
            upstream.status,
            upstream.reason or REASONS.get(upstream.status, b""),
            header_lines(headers),
            exchange.rate_headers(),
        )

    @property
    def _framed(self) -> bool:
        """The client gets chunks."""
        return self._upstream.chunked and not self._exchange.request.is_http10

    def _between_chunks(self, in_chunk: bool) -> bool:
        """Whether what the client has got ends with a whole chunk."""
        return not in_chunk or (isinstance(self.watch, EventStream) and self.watch.filters)

    def _held(self) -> bytes:
        """Whole events that have come and were held back."""
        watch = self.watch
        return watch.rest() if isinstance(watch, EventStream) and watch.filters else b""

    def _explained(self) -> list[bytes]:
        """Headers that name what was chosen and expected, for a client that asked."""
        placement, replica = self._exchange.placement, self._exchange.replica
        ticket = self._exchange.ticket
        if placement is None or replica is None:
            return []  # it left the fleet
        return [
            *(b"x-warmroute-replica", replica.name.encode()),
            *(b"x-warmroute-predicted-tokens", b"%d" % int(placement.held_tokens)),
            *(b"x-warmroute-reason", placement.reason.encode()),
            *(queue_headers(ticket) if ticket is not None else ()),
            *self._exchange.diagnosis_headers(),
        ]


def outward(headers: list[bytes], host: bytes, prefix: str) -> list[bytes]:
    """A redirect's headers with a Location that the client can follow and that shows no inner
    address: an engine makes it of the host and the path that it was asked at."""
    found = list(headers)
    for at in range(0, len(found), 2):
        if found[at].lower() != b"location":
            continue
        where = found[at + 1]
        scheme, slashes, rest = where.partition(b"//")
        authority = rest[: len(host)].lower()
        behind = rest[len(host) : len(host) + 1]
        if slashes and scheme.lower() in (b"", b"http:", b"https:"):
            if authority != host.lower() or behind not in (b"", b"/", b"?", b"#"):
                continue
            where = rest[len(host) :]
            if behind != b"/":
                where = b"/" + where
        inner = prefix.encode()
        if inner and where.startswith(inner + b"/"):
            where = where[len(inner) :]
        found[at + 1] = where
    return found
