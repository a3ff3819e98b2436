"""How often something may be done sooner than usual: so often at once, then once in a while."""

from __future__ import annotations


class Allowance:
    """One every `each` seconds, and `most` at once after a rest."""

    __slots__ = ("_each", "_limit", "_until")

    def __init__(self, each: float, most: int) -> None:
        self._each = each
        self._limit = each * most
        self._until = 0.0
        """When all that was spent is made up for."""

    def spend(self, now: float) -> bool:
        """Whether this time is allowed. Times that are not allowed count as well: who asks all the
        time gets nothing. now is in monotonic seconds."""
        until = max(self._until, now) + self._each
        allowed = until - now <= self._limit
        self._until = until if allowed else now + self._limit
        return allowed
