"""A connection to the admin port, with the limits that uvicorn's own has not.

Each connection takes an open file of those that clients' requests need too. uvicorn waits for ever
for the rest of a request, for any number of connections, and takes heads of any size.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_TIMEOUT_S: Final = 10.0
"""Seconds in which a request has to arrive, until the first one begins, and in which a client has
to take some of a long answer."""
MAX_CONNECTIONS: Final = 32
"""Beyond, the one that waits for its client for longest makes room."""
MAX_HEAD_BYTES: Final = 64 * 1024


class AdminConnection(HttpToolsProtocol):
    """The mutable state is the timer while the client is waited for, and the size of the head that
    is arriving."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None
        self._head = -1
        """Bytes of the head that is arriving; below 0 where none is."""
        self.since = monotonic()
        """When it began to wait for its client."""

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: no answer is being made."""
        return self._late is not None or self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [
                each
                for each in self.connections
                if isinstance(each, AdminConnection) and each is not self and each.waits
            ]
            # Closed at once: what it has not read yet would keep it open.
            min(waiting, key=lambda each: each.since, default=self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._head >= 0:
            self._head += len(data)
        super().data_received(data)
        if self._head > MAX_HEAD_BYTES:
            self.transport.abort()
        elif self._late is None and self.waits:
            # These bytes begin no request, and have stopped the timer for idle connections.
            self._await_request()

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        super().pause_writing()
        if self._late is None:
            self._await_request()

    def resume_writing(self) -> None:
        """It does again."""
        self._arrived()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._arrived()
        self._await_request()
        self._head = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is whole."""
        self._head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole."""
        self._arrived()
        super().on_message_complete()

    def _await_request(self) -> None:
        self.since = monotonic()
        self._late = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.abort)

    def _arrived(self) -> None:
        self.since = monotonic()
        if self._late is not None:
            self._late.cancel()
            self._late = None
