"""After a switch of protocols (WebSocket): bytes pass both ways, unread, at the slower side's
speed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from router.http.local_reply import BadRequest
from router.http.upstream import header_lines

if TYPE_CHECKING:
    import httptools

    from router.http.request import Request
    from router.http.upstream import UpstreamConnection

# What a client may send before the switch is confirmed until it is read no more.
_EARLY_MAX = 64 * 1024
# What is still on its way to one side once the other has left is not waited for any longer.
_FLUSH_S = 5.0


class Early:
    """Takes the parser's place once a request to switch protocols has come.

    What follows is not HTTP if the replica agrees, and if it does not the connection ends with its
    answer, since nobody can say where the next request would begin.
    """

    __slots__ = ("_transport", "data")

    def __init__(self, transport: asyncio.Transport, data: bytes) -> None:
        self._transport = transport
        self.data = data

    def feed_data(self, data: bytes) -> None:
        """Keep it for the tunnel."""
        self.data += data
        if len(self.data) > _EARLY_MAX:
            self._transport.pause_reading()


def switches(request: Request, parser: httptools.HttpRequestParser) -> bool:
    """A head asks to switch protocols. False where that is ignored, and the head is parsed again.

    Raises BadRequest where it contradicts itself.
    """
    if not parser.should_upgrade():
        # Without "Connection: upgrade" the parser takes it for an ordinary request too.
        request.upgrade = b""
    elif request.upgrade.lower() != b"websocket" or request.is_http10:
        request.upgrade = b""
        return False
    elif parser.get_method() != b"GET":
        raise BadRequest(400, "a WebSocket begins with GET")
    elif request.transfer or request.content_length.strip(b" 0"):
        raise BadRequest(400, "a request to switch to WebSocket has no body")
    return True


def without_upgrade(request: Request, method: bytes) -> bytes:
    """The head again, without its upgrade.

    Any protocol but WebSocket (a client asking for h2c) may be ignored: RFC 9110, 7.8. The parser
    has skipped the body, so the head has to go through a new one.
    """
    headers = [*request.headers]
    if request.host is not None:
        headers += (b"host", request.host)
    for name, value in (
        (b"content-length", request.content_length),
        (b"transfer-encoding", b"chunked" if request.transfer else b""),
        (b"expect", b"100-continue" if request.expect else b""),
        (b"x-request-id", request.request_id),
        (b"x-warmroute-explain", b"1" if request.explain else b""),
        (b"connection", request.connection_option),
    ):
        if value:
            headers += (name, value)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (
        method,
        request.target,
        b"1.0" if request.is_http10 else b"1.1",
        header_lines(headers),
    )


class Tunnelled(Protocol):
    """Whose bytes pass."""

    idle_ticks: int
    """Sweeps since something passed."""


class TunnelEnd(asyncio.Protocol):
    """One side. Takes the place of the HTTP protocol, which is told when the connection ends."""

    __slots__ = ("_before", "_exchange", "peer", "transport")

    def __init__(
        self, exchange: Tunnelled, transport: asyncio.Transport, before: asyncio.Protocol
    ) -> None:
        self._exchange: Tunnelled | None = exchange
        self.transport = transport
        self.peer = transport
        self._before = before

    def data_received(self, data: bytes) -> None:
        """Bytes for the other side."""
        self.peer.write(data)
        if self._exchange is not None and not self.peer.is_closing():
            self._exchange.idle_ticks = 0

    def eof_received(self) -> bool:
        """This side has closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """This side is gone; the other gets what is still on its way, then ends too."""
        self._exchange = None
        self.peer.close()
        if self.peer.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_FLUSH_S, self.peer.abort)
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """This side is slow: read no more from the other."""
        self.peer.pause_reading()

    def resume_writing(self) -> None:
        """This side has caught up."""
        self.peer.resume_reading()


def switch(
    exchange: Tunnelled,
    client: asyncio.Protocol,
    transport: asyncio.Transport,
    upstream: UpstreamConnection,
    head: bytes,
) -> None:
    """The replica has agreed: from here on bytes go both ways as they are.

    client, transport: the client's side. head: what goes to it first.
    """
    near = TunnelEnd(exchange, transport, client)
    far = TunnelEnd(exchange, upstream.transport, upstream)
    near.peer, far.peer = far.transport, near.transport
    transport.set_protocol(near)
    upstream.transport.set_protocol(far)
    transport.write(head)


def switching_head(headers: list[bytes], protocol: bytes) -> bytes:
    """The head of an answer that agrees to switch. headers: the replica's."""
    headers = [*headers, b"connection", b"upgrade", b"upgrade", protocol]
    return b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % header_lines(headers)
