"""A fresh look at what the engines serve, for a request whose model nobody is known to serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

REFRESH_INTERVAL_S: Final = 1.0
"""Seconds between the starts of two looks: unknown names must not become load on the engines."""


class ModelRefresh:
    """Asks the engines once for all requests that wait. An answer is never older than the newest
    request that waits for it."""

    __slots__ = ("_began", "_every", "_next", "_read", "_running")

    def __init__(self, read: Callable[[], Awaitable[None]], every: Callable[[], float]) -> None:
        """read: ask all engines. every: seconds between the starts of two looks."""
        self._read = read
        self._every = every
        self._next: asyncio.Task[None] | None = None
        """Waits for its time; who comes meanwhile shares it."""
        self._running: asyncio.Task[None] | None = None
        self._began = -REFRESH_INTERVAL_S * 1000

    def join(self) -> asyncio.Task[None]:
        """Wait for a look that begins now or later."""
        if self._next is None:
            self._next = asyncio.create_task(self._look(), name="fresh look at the models")
        return self._next

    def cancel(self) -> None:
        """Cancel the look in progress."""
        for task in (self._next, self._running):
            if task is not None:
                task.cancel()

    async def _look(self) -> None:
        await asyncio.sleep(max(self._began + self._every() - time.monotonic(), 0.0))
        if self._running is not None:
            await asyncio.wait((self._running,))
        self._began = time.monotonic()
        self._running, self._next = self._next, None
        await self._read()
