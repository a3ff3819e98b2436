"""Requests to switch protocols: what comes too early, and what is not switched to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.http.heads import header_lines

if TYPE_CHECKING:
    import asyncio

    from router.http.request import Request

# What a client may send before the switch is confirmed until it is read no more.
_EARLY_MAX = 64 * 1024


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
