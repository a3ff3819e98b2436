"""After a switch of protocols (WebSocket): bytes pass both ways, unread, at the slower side's
speed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.http.heads import header_lines

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.upstream import UpstreamConnection


class TunnelEnd(asyncio.Protocol):
    """One side. Takes the place of the HTTP protocol, which is told when the connection ends."""

    __slots__ = ("_before", "_exchange", "peer", "transport")

    def __init__(
        self, exchange: Exchange, transport: asyncio.Transport, before: asyncio.Protocol
    ) -> None:
        self._exchange: Exchange | None = exchange
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
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """This side is slow: read no more from the other."""
        self.peer.pause_reading()

    def resume_writing(self) -> None:
        """This side has caught up."""
        self.peer.resume_reading()


def switch(exchange: Exchange, upstream: UpstreamConnection, rest: bytes) -> None:
    """The replica has agreed: from here on bytes go both ways as they are.

    rest: what it has sent behind its head.
    """
    client = exchange.client
    headers = [*upstream.headers, b"connection", b"upgrade", b"upgrade", exchange.request.upgrade]
    head = b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n" % header_lines(headers)
    near = TunnelEnd(exchange, client.transport, client)
    far = TunnelEnd(exchange, upstream.transport, upstream)
    near.peer, far.peer = far.transport, near.transport
    client.transport.set_protocol(near)
    upstream.transport.set_protocol(far)
    client.transport.write(head + rest)
    early = client.early()
    if early:
        upstream.transport.write(early)
