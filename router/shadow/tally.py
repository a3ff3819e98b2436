"""What a shadow policy would have got, counted since the start and over the last hour."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

SLICE_S: Final = 300.0
"""Seconds that one slice of the last hour covers."""
SLICES: Final = 12
"""Slices that make up the last hour."""


class Tally(msgspec.Struct):
    """Sums over requests whose engine reported what it reused. Tokens, unless it says otherwise."""

    requests: int = 0
    prompt: int = 0
    predicted: float = 0.0
    """What the replicas chosen by the shadow were believed to hold."""
    delivered: int = 0
    """What the engines that really served these requests reused."""
    wait: float = 0.0
    """Seconds that the shadow expected until each prompt's prefill was done."""
    saved: float = 0.0
    """Seconds of prefill that delivered less predicted tokens stand for; below 0 where the shadow
    would have saved more."""
    uncached: dict[int, float] = msgspec.field(default_factory=dict)
    """By slot: what the shadow left to compute there."""

    def add(self, other: Tally) -> None:
        """Add another tally's sums to these."""
        self.requests += other.requests
        self.prompt += other.prompt
        self.predicted += other.predicted
        self.delivered += other.delivered
        self.wait += other.wait
        self.saved += other.saved
        for slot, tokens in other.uncached.items():
            self.uncached[slot] = self.uncached.get(slot, 0.0) + tokens

    def hottest(self, replicas: int) -> float | None:
        """How many times the even share of uncached tokens the busiest replica got; None before
        the first."""
        total = sum(self.uncached.values())
        if not total or not replicas:
            return None
        return max(self.uncached.values()) * replicas / total


class Rolling:
    """A tally since the start, and one of the last hour in slices of five minutes."""

    __slots__ = ("_slices", "total")

    def __init__(self) -> None:
        self.total = Tally()
        self._slices: deque[tuple[float, Tally]] = deque(maxlen=SLICES)

    def slice(self, now: float) -> Tally:
        """The slice of this moment, in monotonic seconds."""
        start = now - now % SLICE_S
        if not self._slices or self._slices[-1][0] < start:
            self._slices.append((start, Tally()))
        return self._slices[-1][1]

    def last_hour(self, now: float) -> Tally:
        """The slices that began within the last hour, as one."""
        found = Tally()
        for start, tally in self._slices:
            if now - start <= SLICE_S * SLICES:
                found.add(tally)
        return found
