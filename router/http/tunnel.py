"""After a switch of protocols (WebSocket): bytes pass both ways, unread, at the slower side's speed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.http.server import ClientConnection
    from router.http.upstream import UpstreamConnection


class TunnelEnd(asyncio.Protocol):
    """One side. Takes the place of the HTTP protocol, which is told when the connection ends."""

    __slots__ = ("_before", "peer", "transport")

    def __init__(self, transport: asyncio.Transport, before: asyncio.Protocol) -> None:
        self.transport = transport
        self.peer = transport
        self._before = before

    def data_received(self, data: bytes) -> None:
        """Bytes for the other side."""
        self.peer.write(data)

    def eof_received(self) -> bool:
        """This side has closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """This side is gone; the other gets what is still on its way, then ends too."""
        self.peer.close()
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """This side is slow: read no more from the other."""
        if not self.peer.is_closing():
            self.peer.pause_reading()

    def resume_writing(self) -> None:
        """This side has caught up."""
        if not self.peer.is_closing():
            self.peer.resume_reading()


def join(client: ClientConnection, upstream: UpstreamConnection) -> None:
    """Join the two connections until either ends."""
    a = TunnelEnd(client.transport, client)
    b = TunnelEnd(upstream.transport, upstream)
    a.peer, b.peer = b.transport, a.transport
    client.transport.set_protocol(a)
    upstream.transport.set_protocol(b)
