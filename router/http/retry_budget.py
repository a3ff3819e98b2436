"""A bound on retries as a share of traffic, so that they never become the load that keeps a fleet
down."""

from __future__ import annotations


class RetryBudget:
    """A token bucket: each request adds `share`, each retry takes one.

    It begins with, and holds at most, `reserve` retries, so that little traffic can be retried too.
    """

    __slots__ = ("_left", "_reserve", "share")

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self.share = share
        self._reserve = reserve if share else 0.0
        self._left = self._reserve

    def earn(self) -> None:
        """A request has come."""
        left = self._left + self.share
        self._left = left if left < self._reserve else self._reserve

    def take(self, *, free: bool = False) -> bool:
        """Whether one more retry is allowed; takes it if so.

        free: it counts towards nothing, since what made it cannot happen again. Where there is no
        budget at all there are no such retries either.
        """
        if free and self._reserve:
            return True
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
