"""A stream of events in chunks, on its way to the client: watched, and where the router and not the
client asked for usage, without the event that carries it.

Works on the raw bytes of a chunked body. An engine sends each event as a chunk of its own; as long
as a read ends with a whole event in a whole chunk and says nothing but that the answer goes on, it
is passed on as it is. Only where usage is taken out, an event that came in part is held back until
the rest is there, since a client can make nothing of half an event anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from router.http.events import LARGEST, Kind, Scanner, event_data

if TYPE_CHECKING:
    from router.http.upstream import UpstreamConnection


class Engine(Protocol):
    """What is known of the engine that sends the stream."""

    fingerprint: bytes | None
    """Its `system_fingerprint` as JSON, empty where it has none, None while it is not known."""


class _Stamp(msgspec.Struct, gc=False):
    system_fingerprint: msgspec.Raw = msgspec.Raw()


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
                # One event, and a token of a choice that goes on: vLLM puts nothing else with it
                # where the client did not ask.
                if (
                    self.filters
                    and b'"finish_reason":null' in data
                    and data.find(b"\n\n") == len(data) - 4
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
            # Events as large as this carry something other than tokens: pass them on.
            out += (self._raw, self._line)
            self._raw = b""
            self._text.clear()
            self._kinds.clear()
            self.filters = self._stamps = False
        return b"".join(out)

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
