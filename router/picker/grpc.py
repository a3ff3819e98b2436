"""gRPC over HTTP/2, a server's side: messages, statuses, and which call goes where.

The protocol: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, Protocol
from urllib.parse import quote

from hpack import Encoder

from router.picker.frames import END_HEADERS, HEADERS, frame
from router.picker.http2 import Connection, Headers, Stream

# Status codes: https://grpc.github.io/grpc/core/md_doc_statuscodes.html
OK: Final = 0
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_PREFIX: Final = struct.Struct(">BI")


def _block(*headers: tuple[str, str]) -> bytes:
    """A header block that leaves the client's table as it is, so that it can be sent again."""
    encoder = Encoder()
    return bytes(encoder.encode([(name, value, True) for name, value in headers]))


_ANSWER: Final = _block((":status", "200"), ("content-type", "application/grpc"))
_DONE: Final = _block(("grpc-status", "0"))
_NOT_GRPC: Final = _block((":status", "415"))


def _failed(status: int, message: str, *, alone: bool) -> bytes:
    """The trailers of a call that failed; alone: nothing was sent before."""
    head = ((":status", "200"), ("content-type", "application/grpc")) if alone else ()
    told = ("grpc-message", quote(message, safe=" !\"#$&'()*+,-./:;<=>?@[]^_`{|}~"))
    return _block(*head, ("grpc-status", str(status)), told)


class Handler(Protocol):
    """Answers one call. Calls come from within the connection's own reads."""

    def message(self, data: bytes) -> None:
        """A whole message has come."""

    def half_closed(self) -> None:
        """The client sends no more."""

    def gone(self) -> None:
        """The client has gone, or has been sent a failure. Nothing more can be sent."""


Method = Callable[["Call", Headers], Handler]


class Call(Stream):
    """One call: its messages in and out."""

    __slots__ = ("_compressed", "_handler", "_head_sent", "_largest", "_need", "_parts", "_size")

    def __init__(self, connection: Connection, number: int, largest: int) -> None:
        """largest: bytes of a message that are taken at most."""
        super().__init__(connection, number)
        self._handler: Handler
        self._largest = largest
        self._head_sent = False
        self._parts: list[bytes] = []
        self._size = 0
        """Bytes in _parts."""
        self._need = 5
        """Bytes after which there is something to do."""

    def attend(self, handler: Handler) -> None:
        """Who answers it."""
        self._handler = handler

    # -- what comes

    def received(self, data: bytes) -> None:
        """More has come: hand on the messages that are whole."""
        if self._size:
            self._parts.append(data)
            self._size += len(data)
            if self._size < self._need:
                return
            data = b"".join(self._parts)
            self._parts = []
            self._size = 0
        at, end = 0, len(data)
        need = 5
        while end - at >= 5:
            packed, size = _PREFIX.unpack_from(data, at)
            if packed:
                self.fail(UNIMPLEMENTED, "compressed messages are not taken")
                return
            if size > self._largest:
                self.fail(RESOURCE_EXHAUSTED, f"a message of {size} bytes; {self._largest} allowed")
                return
            if end - at < 5 + size:
                need = 5 + size
                break
            begin = at + 5
            at = begin + size
            self._handler.message(data[begin:at])
            if self.closing is not None:
                return
        if at < end:
            self._parts = [data[at:] if at else data]
            self._size = end - at
            self._need = need

    def half_closed(self) -> None:
        """The client sends no more."""
        if self._size:
            self.fail(INTERNAL, "the call ended inside a message")
        elif self.closing is None:
            self._handler.half_closed()

    def gone(self) -> None:
        """The client has gone."""
        self._parts = []
        self._handler.gone()

    # -- what goes

    def answer(self, message: bytes) -> None:
        """Send one message."""
        if not self._head_sent:
            self._head_sent = True
            self.connection.write(frame(HEADERS, END_HEADERS, self.number, _ANSWER))
        self.send(_PREFIX.pack(0, len(message)) + message)

    def finish(self) -> None:
        """The call went well, and is over."""
        if not self._head_sent:
            self._head_sent = True
            self.connection.write(frame(HEADERS, END_HEADERS, self.number, _ANSWER))
        self.end(_DONE)

    def fail(self, status: int, message: str) -> None:
        """The call failed: say how, and that it is over."""
        self.end(_failed(status, message, alone=not self._head_sent))
        self.gone()


class _Refused:
    """Answers a call that nobody answers."""

    def message(self, data: bytes) -> None:
        """Nothing is done with it."""

    def half_closed(self) -> None:
        """It has been answered."""

    def gone(self) -> None:
        """It has been answered."""


class Services:
    """The methods that are served."""

    def __init__(self, methods: Mapping[bytes, Method], largest: int) -> None:
        """methods: by path, such as /grpc.health.v1.Health/Check. largest: bytes of a message."""
        self._methods = methods
        self._largest = largest

    def call(self, connection: Connection, number: int, headers: Headers) -> Call:
        """A call begins: who answers it?"""
        call = Call(connection, number, self._largest)
        kind = headers.get(b"content-type", b"")
        if headers.get(b":method") != b"POST" or not kind.startswith(b"application/grpc"):
            call.attend(_Refused())
            call.end(_NOT_GRPC)
            return call
        path = headers.get(b":path", b"")
        method = self._methods.get(path)
        if method is None:
            call.attend(_Refused())
            call.fail(UNIMPLEMENTED, f"there is no method {path.decode('latin-1')}")
        else:
            call.attend(method(call, headers))
        return call
