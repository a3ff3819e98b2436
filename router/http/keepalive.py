"""TCP keepalive: a side that vanished without a word is found out, however long nothing is due."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

_IDLE: Final = 60
"""Seconds of silence after which the other side is asked whether it is there."""
_EVERY: Final = 15
_TIMES: Final = 4


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel look after it. What a listening socket is told holds for its connections."""
    # A side that is gone by now is found out by itself.
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _EVERY)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _TIMES)
