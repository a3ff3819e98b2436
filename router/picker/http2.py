"""HTTP/2 as a gRPC server needs it: one connection's frames, streams and flow control (RFC 9113).

Spoken here and not by a library because the library's share of a request was larger than all the
rest of it (docs/design/decisions/own-grpc.md). Header compression is the library hpack's. What
a gRPC server has no use for (server push, priorities) is refused or passed over.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from typing import Final, Protocol

import hpack

from router.picker.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEAD,
    HEADERS,
    INTERNAL_ERROR,
    NO_ERROR,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ProtocolError,
    changes_table,
    frame,
    unpadded,
)

log = logging.getLogger(__name__)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_SETTINGS_MAX_CONCURRENT_STREAMS: Final = 3
_SETTINGS_INITIAL_WINDOW_SIZE: Final = 4
_SETTINGS_MAX_FRAME_SIZE: Final = 5
_SETTINGS_MAX_HEADER_LIST_SIZE: Final = 6

_U32: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")

STREAM_WINDOW: Final = 1 << 20
"""Bytes that one stream may send before they were taken."""
CONNECTION_WINDOW: Final = 1 << 24
"""The same for all streams of a connection together."""
_FIRST_WINDOW: Final = 65_535
_LARGEST_WINDOW: Final = (1 << 31) - 1
_SMALLEST_FRAME: Final = 16_384
FRAME: Final = 65_536
"""Bytes of a frame's content that are taken at most."""
_HEADER_LIST: Final = 32 * 1024
"""Bytes of one call's headers that are taken at most."""
_MEMO: Final = 256
"""Header blocks that are remembered for a connection."""
_CONTROL: Final = 1000
"""Answers to pings and settings that may wait for a client that does not read."""

Headers = dict[bytes, bytes]
"""Of a call. Where a name comes twice, the last value counts."""


class Owner(Protocol):
    """Who has the connections, and says what becomes of a call."""

    max_streams: int
    """Calls that one connection may have open."""

    def opened(self, connection: Connection) -> None:
        """A client has connected."""

    def call(self, connection: Connection, number: int, headers: Headers) -> Stream:
        """A call begins."""

    def closed(self, connection: Connection) -> None:
        """The connection is gone; its streams have been told before."""


class Stream:
    """One stream. A subclass says what is done with what comes."""

    __slots__ = (
        "_owed",
        "_waiting",
        "closing",
        "connection",
        "number",
        "reader_done",
        "waiting_bytes",
        "window",
    )

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection = connection
        self.number = number
        self.window = connection.peer_window
        """Bytes that the client takes just now."""
        self._waiting: deque[bytes] = deque()
        self.waiting_bytes = 0
        """Bytes that wait for the client to take them."""
        self.closing: bytes | None = None
        """The header block of the trailers that follow what waits."""
        self._owed = 0
        """Bytes that were taken and for which the client was not given new window."""
        self.reader_done = False
        """The client sends no more."""

    # -- for the subclass to fill in

    def received(self, data: bytes) -> None:
        """More has come."""
        raise NotImplementedError

    def half_closed(self) -> None:
        """The client sends no more."""
        raise NotImplementedError

    def gone(self) -> None:
        """The stream was reset, or the connection is lost. Not called where `end` was before."""
        raise NotImplementedError

    # -- for the subclass to use

    def send(self, data: bytes) -> None:
        """Send, as fast as the client takes it."""
        size, connection = len(data), self.connection
        if (
            not self._waiting
            and size <= self.window
            and size <= connection.window
            and size <= connection.peer_frame
        ):
            self.window -= size
            connection.window -= size
            connection.write(HEAD.pack(size >> 8, size & 0xFF, DATA, 0, self.number) + data)
            return
        self._waiting.append(data)
        self.waiting_bytes += size
        if len(self._waiting) == 1:
            self.flush()

    def end(self, trailers: bytes) -> None:
        """Send these trailers, a whole header block, behind what waits; nothing after it."""
        if self.closing is None:
            self.closing = trailers
            self.flush()

    def reset(self, code: int) -> None:
        """End the stream without an answer."""
        self.connection.write(frame(RST_STREAM, 0, self.number, _U32.pack(code)))
        self.connection.forget(self)

    # -- for the connection

    def took(self, size: int) -> None:
        """So much was received: let the client send as much again, once that is worth a frame.

        Not while the client leaves what was sent to it lying: what it sends is answered with as
        much, which would pile up here.
        """
        self._owed += size
        if self._owed >= STREAM_WINDOW >> 1 and not self.waiting_bytes and not self.reader_done:
            content = _U32.pack(self._owed)
            self._owed = 0
            self.connection.write(frame(WINDOW_UPDATE, 0, self.number, content))

    def flush(self) -> None:
        """Send of what waits as much as the windows allow."""
        connection, waiting = self.connection, self._waiting
        while waiting:
            data = waiting[0]
            room = min(self.window, connection.window, connection.peer_frame)
            if room <= 0:
                if connection.window <= 0:
                    connection.blocked[self.number] = self
                return
            size = len(data)
            if size > room:
                waiting[0] = data[room:]
                data, size = data[:room], room
            else:
                waiting.popleft()
            self.window -= size
            connection.window -= size
            self.waiting_bytes -= size
            connection.write(HEAD.pack(size >> 8, size & 0xFF, DATA, 0, self.number) + data)
        if self.closing is not None:
            connection.write(frame(HEADERS, END_HEADERS | END_STREAM, self.number, self.closing))
            if not self.reader_done:
                # The answer is whole, so the rest of the question is not needed: section 8.1.
                content = _U32.pack(NO_ERROR)
                connection.write(frame(RST_STREAM, 0, self.number, content))
            connection.forget(self)
        elif self._owed:
            self.took(0)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.transport: asyncio.Transport
        self._rest = b""
        """What was read of a frame that is not whole."""
        self._greeted = False
        self._decoder = hpack.Decoder(max_header_list_size=_HEADER_LIST)
        self._decoder.max_allowed_table_size = 4096
        self._memo: dict[bytes, Headers] = {}
        """Header blocks that change nothing in the decoder, and what they say."""
        self._block: list[bytes] | None = None
        """The parts of a header block that is not whole."""
        self._block_of = (0, 0)
        self._last = 0
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[int, Stream] = {}
        """Streams that wait for the connection's window."""
        self.window = _FIRST_WINDOW
        """Bytes that the client takes just now, on all streams together."""
        self.peer_window = _FIRST_WINDOW
        """The window with which a stream begins."""
        self.peer_frame = _SMALLEST_FRAME
        self._owed = 0
        self._out: list[bytes] = []
        self._reading = False
        """Inside of data_received: what is written goes out at its end, in one call."""
        self._paused = False
        self._draining = False

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client has connected: say what is taken here."""
        self.transport = transport  # type: ignore[assignment]
        self._owner.opened(self)
        settings = b"".join(
            _SETTING.pack(*pair)
            for pair in (
                (_SETTINGS_MAX_CONCURRENT_STREAMS, self._owner.max_streams),
                (_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                (_SETTINGS_MAX_FRAME_SIZE, FRAME),
                (_SETTINGS_MAX_HEADER_LIST_SIZE, _HEADER_LIST),
            )
        )
        more = _U32.pack(CONNECTION_WINDOW - _FIRST_WINDOW)
        self.write(frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Nothing more can be sent or come."""
        streams = list(self.streams.values())
        self.streams.clear()
        self.blocked.clear()
        for stream in streams:
            self._tell_gone(stream)
        self._owner.closed(self)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._paused = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._paused = False

    def data_received(self, data: bytes) -> None:
        """Bytes have come: take the whole frames out of them."""
        if self.transport.is_closing():
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        self._reading = True
        try:
            self._rest = self._take(data)
        except ProtocolError as error:
            self._break(error)
        except hpack.HPACKError as error:
            self._break(ProtocolError(COMPRESSION_ERROR, str(error) or type(error).__name__))
        finally:
            self._reading = False
            if self._out:
                self.transport.write(b"".join(self._out))
                self._out.clear()

    # -- for streams

    def write(self, data: bytes) -> None:
        """Send whole frames."""
        if self._reading:
            self._out.append(data)
        else:
            self.transport.write(data)

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        self.streams.pop(stream.number, None)
        self.blocked.pop(stream.number, None)
        if self._draining and not self.streams:
            self._close()

    def drain(self) -> None:
        """Let what is open end, and take no new streams: section 6.8."""
        if self._draining or self.transport.is_closing():
            return
        self._draining = True
        content = _U32.pack(self._last) + _U32.pack(NO_ERROR)
        self.transport.write(frame(GOAWAY, 0, 0, content))
        if not self.streams:
            self._close()

    def _close(self) -> None:
        # What is written within a read goes out at its end.
        if self._out:
            self.transport.write(b"".join(self._out))
            self._out.clear()
        self.transport.close()

    def _break(self, error: ProtocolError) -> None:
        log.warning("a client of the picker broke the rules of HTTP/2: %s", error)
        self._rest = b""
        content = _U32.pack(self._last) + _U32.pack(error.code)
        self._out.append(frame(GOAWAY, 0, 0, content))
        self._close()

    # -- frames

    def _take(self, data: bytes) -> bytes:
        """Handle all whole frames; returns what is left."""
        at, end = 0, len(data)
        if not self._greeted:
            if end < len(PREFACE):
                if not PREFACE.startswith(data):
                    raise ProtocolError(PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2) only")
                return data
            if not data.startswith(PREFACE):
                raise ProtocolError(PROTOCOL_ERROR, "this port speaks gRPC (HTTP/2) only")
            self._greeted = True
            at = len(PREFACE)
        while end - at >= 9:
            high, low, kind, flags, number = HEAD.unpack_from(data, at)
            size = high << 8 | low
            if size > FRAME:
                raise ProtocolError(FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            begin = at + 9
            at = begin + size
            if at > end:
                return data[begin - 9 :]
            number &= _LARGEST_WINDOW
            if self._block is not None and kind != CONTINUATION:
                raise ProtocolError(PROTOCOL_ERROR, "a header block was interrupted")
            if kind == DATA:
                self._data(number, flags, data[begin:at])
            elif kind == HEADERS:
                self._headers(number, flags, data[begin:at])
            elif kind == CONTINUATION:
                self._continuation(number, flags, data[begin:at])
            elif kind <= CONTINUATION:
                self._control(kind, number, flags, data[begin:at])
            # Frames of other types are passed over: section 5.5.
        return data[at:]

    def _data(self, number: int, flags: int, content: bytes) -> None:
        size = len(content)
        # Flow control counts the padding, and frames of streams that are over here.
        self._owed += size
        if self._owed >= CONNECTION_WINDOW >> 2:
            self.write(frame(WINDOW_UPDATE, 0, 0, _U32.pack(self._owed)))
            self._owed = 0
        if flags & PADDED:
            content = unpadded(content)
        stream = self.streams.get(number)
        if stream is None:
            if not number or number > self._last:
                raise ProtocolError(PROTOCOL_ERROR, f"data on stream {number}, which is not open")
            return
        if stream.reader_done:
            stream.reset(STREAM_CLOSED)
            self._tell_gone(stream)
            return
        if flags & END_STREAM:
            stream.reader_done = True
        if content:
            self._guarded(stream, content)
        if size and number in self.streams:
            stream.took(size)
        if flags & END_STREAM and number in self.streams:
            stream.half_closed()

    def _guarded(self, stream: Stream, content: bytes) -> None:
        """A fault in one call must not end the others of its connection."""
        try:
            stream.received(content)
        except Exception:
            log.exception("a call of the picker failed")
            if stream.number in self.streams:
                stream.reset(INTERNAL_ERROR)
            self._tell_gone(stream)

    def _headers(self, number: int, flags: int, content: bytes) -> None:
        if flags & PADDED:
            content = unpadded(content)
        if flags & WITH_PRIORITY:
            if len(content) < 5:
                raise ProtocolError(FRAME_SIZE_ERROR, "a HEADERS frame without its priority")
            content = content[5:]
        if flags & END_HEADERS:
            self._block_whole(number, flags, content)
        else:
            self._block = [content]
            self._block_of = (number, flags)

    def _continuation(self, number: int, flags: int, content: bytes) -> None:
        if self._block is None or self._block_of[0] != number:
            raise ProtocolError(PROTOCOL_ERROR, "a CONTINUATION frame that continues nothing")
        self._block.append(content)
        if sum(map(len, self._block)) > 2 * _HEADER_LIST:
            raise ProtocolError(ENHANCE_YOUR_CALM, "a header block without an end")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), None
            self._block_whole(number, self._block_of[1], block)

    def _block_whole(self, number: int, flags: int, block: bytes) -> None:
        # Decoded whatever becomes of it: the decoder's table is the connection's.
        headers = self._memo.get(block)
        if headers is None:
            headers = self._decode(block)
        stream = self.streams.get(number)
        if stream is not None:
            # Trailers of the client's, which gRPC has no use for.
            if not flags & END_STREAM:
                raise ProtocolError(PROTOCOL_ERROR, "trailers that do not end their stream")
            stream.reader_done = True
            stream.half_closed()
            return
        if not number & 1:
            raise ProtocolError(PROTOCOL_ERROR, f"a client's stream {number} is not odd")
        if number <= self._last:
            return  # of a stream that is over here
        self._last = number
        if self._draining or len(self.streams) >= self._owner.max_streams:
            self.write(frame(RST_STREAM, 0, number, _U32.pack(REFUSED_STREAM)))
            return
        stream = self._owner.call(self, number, headers)
        if stream.closing is not None:
            return  # refused, and over
        self.streams[number] = stream
        if flags & END_STREAM:
            stream.reader_done = True
            stream.half_closed()

    def _decode(self, block: bytes) -> Headers:
        headers: Headers = {}
        for name, value in self._decoder.decode(block, raw=True):
            headers[bytes(name)] = bytes(value)
        # A block that leaves the decoder's table as it is says the same again, for as long as no
        # other block changes the table. Data planes send the same headers with every call.
        if not changes_table(block):
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            self._memo[block] = headers
        else:
            self._memo.clear()
        return headers

    def _control(self, kind: int, number: int, flags: int, content: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window_update(number, content)
        elif kind == RST_STREAM:
            if len(content) != 4:
                raise ProtocolError(FRAME_SIZE_ERROR, "an RST_STREAM frame of the wrong size")
            if not number or number > self._last:
                raise ProtocolError(PROTOCOL_ERROR, "a reset of a stream that is not open")
            stream = self.streams.get(number)
            if stream is not None:
                self.forget(stream)
                self._tell_gone(stream)
        elif kind == SETTINGS:
            self._settings(number, flags, content)
        elif kind == PING:
            if number or len(content) != 8:
                raise ProtocolError(FRAME_SIZE_ERROR, "a PING frame of the wrong size")
            if not flags & ACK:
                self._answer(frame(PING, ACK, 0, content))
        elif kind == PUSH_PROMISE:
            raise ProtocolError(PROTOCOL_ERROR, "a client may not push")
        # GOAWAY: the client opens no more streams, and closes when these are over. PRIORITY:
        # deprecated by RFC 9113.

    def _answer(self, data: bytes) -> None:
        if self._paused and self.transport.get_write_buffer_size() > _CONTROL * len(data):
            raise ProtocolError(ENHANCE_YOUR_CALM, "it asks for more answers than it reads")
        self.write(data)

    def _window_update(self, number: int, content: bytes) -> None:
        if len(content) != 4:
            raise ProtocolError(FRAME_SIZE_ERROR, "a WINDOW_UPDATE frame of the wrong size")
        more = _U32.unpack(content)[0] & _LARGEST_WINDOW
        stream = self.streams.get(number)
        if not number:
            self.window += more
            if not more or self.window > _LARGEST_WINDOW:
                raise ProtocolError(FLOW_CONTROL_ERROR, "a window that cannot be")
            blocked = list(self.blocked.values())
            self.blocked.clear()
            for each in blocked:
                each.flush()
        elif stream is not None:
            stream.window += more
            if not more or stream.window > _LARGEST_WINDOW:
                stream.reset(FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR)
                self._tell_gone(stream)
            else:
                stream.flush()

    def _settings(self, number: int, flags: int, content: bytes) -> None:
        if number:
            raise ProtocolError(PROTOCOL_ERROR, "a SETTINGS frame on a stream")
        if len(content) % 6 or (flags & ACK and content):
            raise ProtocolError(FRAME_SIZE_ERROR, "a SETTINGS frame of the wrong size")
        if flags & ACK:
            return
        for name, value in _SETTING.iter_unpack(content):
            if name == _SETTINGS_INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise ProtocolError(FLOW_CONTROL_ERROR, "a window that cannot be")
                change = value - self.peer_window
                self.peer_window = value
                for stream in list(self.streams.values()):
                    stream.window += change
                    stream.flush()
            elif name == _SETTINGS_MAX_FRAME_SIZE:
                if not _SMALLEST_FRAME <= value < 1 << 24:
                    raise ProtocolError(PROTOCOL_ERROR, "a frame size that cannot be")
                self.peer_frame = value
            # SETTINGS_HEADER_TABLE_SIZE bounds an encoder's table, and none is used here.
        self._answer(frame(SETTINGS, ACK, 0))

    def _tell_gone(self, stream: Stream) -> None:
        try:
            stream.gone()
        except Exception:
            log.exception("the end of a call of the picker was not told")
