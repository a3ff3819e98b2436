"""The socket on which a replica listens."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

BACKLOG = 4096
_FULL = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_PAUSE = 0.1
"""Seconds until accepting is tried again where the system has no room for one more."""


class HttpListener:
    """Accepts all connections that wait each time the loop looks.

    uvloop's own server accepts one each time: a fleet that is busy sending, and so looks seldom,
    would let new clients wait for seconds.
    """

    def __init__(self, host: str, port: int, make: Callable[[], asyncio.Protocol]) -> None:
        """Listen, on any free port where ``port`` is 0. Raises OSError for an address that cannot
        be had."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._make = make
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._socket.setblocking(False)
        # What is accepted inherits it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._resume()

    def close(self) -> None:
        """Refuse from now on; what is connected stays."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                accepted = self._socket.accept()[0]
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._loop.remove_reader(self._socket)
                self._pause = self._loop.call_later(_PAUSE, self._resume)
                return
            accepted.setblocking(False)
            task = self._loop.create_task(self._open(accepted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> object:
        return await self._loop.connect_accepted_socket(self._make, accepted)
