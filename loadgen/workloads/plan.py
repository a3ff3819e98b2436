"""A workload, its arrivals and where it ends: all that two drivers must agree on."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.arrivals import Arrivals, due
from loadgen.workloads.types import Session, Workload


class Plan(msgspec.Struct, frozen=True):
    """What every arm is given. At least one of duration and requests must end it, unless the
    workload itself ends."""

    workload: Workload
    arrivals: Arrivals
    seed: int = 0
    duration: float = 0.0
    """Seconds after which nothing more is sent; what is in flight is awaited. 0: no end."""
    finish: bool = False
    """Sessions that started before the duration was over are sent to their end: all arms then do
    the same work, and the end of the run is emptier."""
    warmup: float = 0.0
    """Requests due in so many first seconds are sent but not counted, and time counts from
    there."""
    requests: int = 0
    """No further session starts once those started have so many steps. 0: no end."""

    def sessions(self) -> Iterator[tuple[float, Session]]:
        """(seconds from the start, session), ascending."""
        steps = 0
        for at, session in due(self.workload, self.arrivals, self.seed):
            if self.duration and at >= self.duration:
                return
            yield at, session
            steps += len(session.steps)
            if self.requests and steps >= self.requests:
                return
