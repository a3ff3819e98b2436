"""Lets tasks wait until the fleet changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ChangeNotifier:
    """The next change, whatever it is, wakes everyone who waits."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everyone who waits for a change."""
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def changed(self) -> None:
        """Wait for the next change."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def until(self, condition: Callable[[], bool], within: float) -> bool:
        """Wait until something is so, looking after each change. False when time ran out before."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await self.changed()
        except TimeoutError:
            return condition()
        return True
