"""How often a fleet is read: as asked, unless it is so large that this would cost too much."""

from __future__ import annotations

READS_A_SECOND = 400.0
"""Of one kind, over the whole fleet. Of health and metrics, this takes about a tenth of a core
(python -m bench.thousand)."""
MAX_INTERVAL_STRETCH = 4.0
"""Times the interval asked for, at most: what is read must not get too old to be of use."""


class PollRate:
    """Intervals between reads, by the size of the fleet."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0
        """Number of replicas."""

    def stretch(self, interval: float) -> float:
        """Seconds between two reads of one replica. They grow with the fleet."""
        return min(max(interval, self.size / READS_A_SECOND), interval * MAX_INTERVAL_STRETCH)

    def offset(self, place: int) -> float:
        """When the nth replica of a fleet is read first, in seconds after the start."""
        return place / READS_A_SECOND
