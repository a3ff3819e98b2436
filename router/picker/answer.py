"""A replica's answer on its way through the data plane, as far as the picker is shown it."""

from __future__ import annotations

import zlib

from router.http.events import Scanner, StreamError, Usage
from router.http.routes import PathRule
from router.http.watching import INFLATABLE, Body

_PLAIN = frozenset((b"", b"identity"))
# Bytes of a piece's content that are looked at, however well it is compressed.
_INFLATED = 4 * 1024 * 1024


class Answer:
    """Looks for the first token and the usage in what is shown of an answer."""

    __slots__ = ("_body", "_inflate", "_scanner", "bytes_out", "events", "first_at")

    def __init__(self, rule: PathRule, status: int, kind: bytes, encoding: bytes) -> None:
        """kind, encoding: the answer's content-type and content-encoding, lower case."""
        self.bytes_out = 0
        """Bytes of the body that were shown."""
        self.events = 0
        """Not counted: there are no tenants' limits here."""
        self.first_at = 0.0
        """When the first token was seen, monotonic; 0 before."""
        self._scanner: Scanner | None = None
        self._body: Body | None = None
        self._inflate = zlib.decompressobj(47) if encoding in INFLATABLE else None
        if status == 200 and (encoding in _PLAIN or encoding in INFLATABLE):
            if kind.startswith(b"text/event-stream"):
                self._scanner = Scanner(rule.form, rule.first_token_mark)
            else:
                self._body = Body()

    @property
    def is_stream(self) -> bool:
        """It consists of events."""
        return self._scanner is not None

    def scan(self, data: bytes, now: float) -> bool:
        """The next piece. Returns whether it brought the first token."""
        self.bytes_out += len(data)
        scanner = self._scanner
        if scanner is None and self._body is None:
            return False
        if self._inflate is not None:
            data = self._inflated(data)
        if scanner is None:
            if self._body is not None:
                self._body.scan(data)
            return False
        # Whole events that say no more than that the answer goes on are most of a stream.
        if self.first_at and not scanner.torn and data[-2:] == b"\n\n" and not scanner.tells(data):
            return False
        scanner.scan(data)
        if self.first_at or not scanner.token:
            return False
        self.first_at = now
        return True

    def finish(self) -> None:
        """Nothing more comes."""
        if self._scanner is not None:
            self._scanner.finish()

    @property
    def ended(self) -> bool:
        """The API's own end of a stream has come: its client needs no more of it."""
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
        return self._body.usage if self._body is not None and self.bytes_out else None

    def _inflated(self, data: bytes) -> bytes:
        assert self._inflate is not None
        try:
            found = self._inflate.decompress(data, _INFLATED)
        except zlib.error:
            found = b""
        else:
            if not self._inflate.unconsumed_tail:
                return found
        # What it says cannot be known.
        self._scanner = self._body = None
        return found
