"""What a further copy of each prefix would have saved so far.

Copying a prefix to one more replica costs once and may be good for long. Nobody knows how often it
will be asked for, so the rule is that of renting or buying (ski rental): pay the higher price of
those who hold it until the differences paid come to what a copy costs, then copy.
"""

from __future__ import annotations

from math import exp

LIMIT = 4096
"""Prefixes remembered; the one that longest went without a saving is forgotten first."""
FORGET_SECONDS = 20.0
"""What was saved so long ago counts for 1/e: what nobody asks for any more will be evicted."""


class Savings:
    """By the hash of a prefix's last block: seconds, and when they were true."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[int, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._seconds)

    def of(self, prefix: int, now: float) -> float:
        """Seconds saved up for a copy of this prefix. now is in monotonic seconds."""
        found = self._seconds.get(prefix)
        if found is None:
            return 0.0
        seconds, at = found
        return seconds * exp((at - now) / FORGET_SECONDS) if now > at else seconds

    def put(self, prefix: int, seconds: float, now: float) -> None:
        """So many are saved up by now, those from before included."""
        known = self._seconds
        known.pop(prefix, None)
        known[prefix] = (seconds, now)
        if len(known) > LIMIT:
            del known[next(iter(known))]

    def spend(self, prefix: int) -> None:
        """The copy is made."""
        self._seconds.pop(prefix, None)
