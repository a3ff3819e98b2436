"""What began to wait, in order: who has waited for too long."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from router.queue.ticket import Ticket

_SPARE: Final = 1000
# Entries beyond twice those that wait, before the ones that wait no more are cleared out.


class Arrivals:
    """Requests in the order in which they began to wait. One that waits no more stays in it until
    it comes first, or until such are many."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: deque[tuple[float, Ticket]] = deque()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, ticket: Ticket) -> None:
        """It begins to wait."""
        self._all.append((ticket.since, ticket))

    def late(self, timeout: float, now: float) -> Iterator[Ticket]:
        """Those that have waited for longer, the oldest first. They may leave meanwhile."""
        waiting = self._all
        while waiting:
            since, ticket = waiting[0]
            waits = ticket.lane is not None and ticket.since == since
            if waits and now - since <= timeout:
                return
            waiting.popleft()
            if waits:
                yield ticket

    def tidy(self, count: int) -> None:
        """Clear out what waits no more, where it is much. count: how many wait."""
        if len(self._all) > 2 * count + _SPARE:
            self._all = deque(each for each in self._all if each[1].lane is not None)
