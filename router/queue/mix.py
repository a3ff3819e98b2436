"""Whether it matters who goes first: several classes of requests came of late, or some that may
leave for elsewhere. Only then do requests wait in the router rather than in their engines."""

from __future__ import annotations

from math import inf
from typing import Final

RECENT_S: Final = 60.0
"""How long a class of requests, a tenant with a priority, counts as coming."""
MOST_CLASSES: Final = 10_000
"""Classes kept as coming of late."""


class Mix:
    """What came of late."""

    __slots__ = ("_aimed_at", "matters", "recent")

    def __init__(self) -> None:
        self.recent: dict[tuple[int, str], float] = {}
        """(priority, tenant) -> when one came last; told of each request by the queue."""
        self._aimed_at = -inf
        """When one came last that may leave."""
        self.matters = False
        """Who goes first does."""

    def several(self) -> None:
        """More than one class has come."""
        self.matters = True
        if len(self.recent) > MOST_CLASSES:
            del self.recent[next(iter(self.recent))]

    def aimed(self, now: float) -> None:
        """A request has come that may leave: who does is chosen of those that wait."""
        self._aimed_at = now
        self.matters = True

    def tick(self, now: float) -> None:
        """Time passes."""
        recent = self.recent
        if recent:
            for key in [key for key, at in recent.items() if now - at > RECENT_S]:
                del recent[key]
        self.matters = len(recent) > 1 or now - self._aimed_at <= RECENT_S
