"""Arrivals: the times at which sessions start."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import TypeAlias

import msgspec

from loadgen.workloads.draw import rng
from loadgen.workloads.types import Session, Workload


class Poisson(msgspec.Struct, frozen=True):
    """Open loop: independent arrivals, requests a second on average."""

    rate: float


class Fixed(msgspec.Struct, frozen=True):
    """An open loop with equal gaps between sessions."""

    rate: float


class Ramp(msgspec.Struct, frozen=True):
    """Open loop, Poisson, its rate growing evenly from low to high over so many seconds."""

    low: float
    high: float
    seconds: float


class Traced(msgspec.Struct, frozen=True):
    """Open loop at the workload's own times, speed times as fast."""

    speed: float = 1.0


class Closed(msgspec.Struct, frozen=True):
    """Closed loop: so many sessions at a time; the next starts when one has ended."""

    concurrency: int
    spread: float = 0.0
    """The first ones start evenly over so many seconds."""


Arrivals: TypeAlias = Poisson | Fixed | Ramp | Traced | Closed


def sample(workload: Workload, seed: int, size: int = 400) -> list[Session]:
    """The first sessions of a workload."""
    return list(islice(workload.sessions(seed), size))


def mean_steps(workload: Workload, seed: int) -> float:
    """Requests of a session, over the first sessions."""
    sizes = [len(session.steps) for session in sample(workload, seed)]
    return sum(sizes) / len(sizes) if sizes else 1.0


def due(workload: Workload, arrivals: Arrivals, seed: int) -> Iterator[tuple[float, Session]]:
    """Sessions with the seconds at which they start, ascending; a function of the arguments alone.

    Rates are requests a second; sessions arrive that much more rarely as they have more steps. For
    a closed loop the time is the earliest one: 0 after the first sessions.
    """
    sessions = workload.sessions(seed)
    if isinstance(arrivals, Traced):
        for session in sessions:
            yield session.at / arrivals.speed, session
        return
    if isinstance(arrivals, Closed):
        for number, session in enumerate(sessions):
            first = number < arrivals.concurrency
            yield arrivals.spread * number / arrivals.concurrency if first else 0.0, session
        return
    times = _times(arrivals, mean_steps(workload, seed) * workload.group, seed)
    for number, session in enumerate(sessions):
        if number % workload.group == 0:
            now = next(times)
        yield now, session


def _times(arrivals: Poisson | Fixed | Ramp, requests: float, seed: int) -> Iterator[float]:
    """Times of arrivals that bring so many requests each."""
    random = rng(seed, "arrivals")
    if isinstance(arrivals, Fixed):
        for number in count():
            yield number * requests / arrivals.rate
    now = 0.0
    while True:
        # A ramp's rate is taken from its highest one by leaving arrivals out.
        if isinstance(arrivals, Poisson):
            now += random.expovariate(arrivals.rate / requests)
        elif isinstance(arrivals, Ramp):
            top = max(arrivals.low, arrivals.high)
            while True:
                now += random.expovariate(top / requests)
                done = min(1.0, now / arrivals.seconds)
                rate = arrivals.low + (arrivals.high - arrivals.low) * done
                if random.random() * top < rate:
                    break
        yield now
