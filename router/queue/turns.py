"""Whose turn it is: tenants of one priority by virtual token counters.

A tenant's counter grows by what its requests have the replicas compute. Of those that wait, the one
with the least goes first. One that had nothing waiting is lifted to the least of those that do, so
that nobody saves up turns.
"""

from __future__ import annotations

from heapq import heappop, heappush

MOST_TENANTS = 10_000
"""Counters kept for one priority. At more, those of tenants with nothing waiting are dropped."""


class Turns:
    """The counters of one priority."""

    __slots__ = ("_last", "_order", "_waiting", "counters")

    def __init__(self) -> None:
        self.counters: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._order: list[tuple[float, str]] = []
        """The waiting tenants by their counters at some earlier time, which only grow."""
        self._last = 0.0
        """The counter of who was served last."""

    def counter(self, tenant: str) -> float:
        """What it has been served."""
        return self.counters.get(tenant, 0.0)

    def joins(self, tenant: str) -> None:
        """One more of its requests waits."""
        waiting = self._waiting.get(tenant, 0)
        if not waiting:
            least = self._least()
            if self.counters.get(tenant, 0.0) < least:
                self.counters[tenant] = least
            heappush(self._order, (self.counters.get(tenant, 0.0), tenant))
        self._waiting[tenant] = waiting + 1

    def leaves(self, tenant: str) -> None:
        """One of its requests waits no more."""
        waiting = self._waiting[tenant] - 1
        if waiting:
            self._waiting[tenant] = waiting
        else:
            del self._waiting[tenant]

    def charge(self, tenant: str, tokens: float) -> None:
        """It was served."""
        self.counters[tenant] = self._last = self.counters.get(tenant, 0.0) + tokens
        if len(self.counters) > MOST_TENANTS:
            kept = {*self._waiting, tenant}
            self.counters = {name: each for name, each in self.counters.items() if name in kept}

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(self._waiting.values())

    def _least(self) -> float:
        order, counters = self._order, self.counters
        while order:
            then, tenant = order[0]
            if tenant not in self._waiting:
                heappop(order)
                continue
            now = counters.get(tenant, 0.0)
            if now == then:
                return then
            heappop(order)
            heappush(order, (now, tenant))
        return self._last
