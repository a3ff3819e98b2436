"""Slow start: a replica that is new or back gets its full share of the load only after a while.

Its cache is empty and, after a restart, its kernels are cold: an idle newcomer would look like the
best choice to every request at once.
"""

from __future__ import annotations

from router.fleet.replica import Replica

FIRST_WEIGHT = 0.1
"""The share a newcomer begins with; not 0, so that something comes and warms it."""


def weight_after(elapsed: float, duration: float) -> float:
    """The weight a replica has this many seconds after it got ready: a line from 0.1 to 1."""
    if elapsed >= duration:
        return 1.0
    return FIRST_WEIGHT + (1.0 - FIRST_WEIGHT) * max(0.0, elapsed) / duration


class SlowStart:
    """The replicas that do not have their full share yet. A duration of 0 seconds turns it off."""

    __slots__ = ("_duration", "_warming")

    def __init__(self, duration: float) -> None:
        self._duration = duration
        self._warming: dict[Replica, float] = {}

    def begin(self, replica: Replica, now: float) -> None:
        """A replica has become ready and gets a small share at first."""
        replica.load.weight = weight_after(0.0, self._duration)
        self._warming[replica] = now

    def drop(self, replica: Replica) -> None:
        """A replica went out of service. Its weight stays until it returns."""
        self._warming.pop(replica, None)

    def tick(self, now: float) -> bool:
        """Raise the weights. True if one reached its full share."""
        done = []
        for replica, since in self._warming.items():
            weight = replica.load.weight = weight_after(now - since, self._duration)
            if weight >= 1.0:
                done.append(replica)
        for replica in done:
            del self._warming[replica]
        return bool(done)
