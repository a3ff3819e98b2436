"""The few random draws all workloads use. ``random`` promises the same numbers for the same
seed."""

from __future__ import annotations

import math
from itertools import accumulate
from random import Random

from loadgen.workloads.types import Role, Segment


def rng(seed: int, name: str) -> Random:
    """A generator of its own for each use of a seed."""
    return Random(f"{name}/{seed}")


def segment(random: Random, tokens: int, role: Role = Role.USER) -> Segment:
    """A segment that nothing else shares."""
    return Segment(random.getrandbits(63), tokens, role)


def around(random: Random, median: float, sigma: float, low: int, high: int) -> int:
    """A token count drawn from a log-normal distribution, clipped to bounds."""
    return min(high, max(low, round(random.lognormvariate(math.log(median), sigma))))


def seconds(random: Random, median: float, sigma: float, high: float) -> float:
    """A log-normal time, clipped above; 0 for a median of 0."""
    if median <= 0:
        return 0.0
    return min(high, random.lognormvariate(math.log(median), sigma))


def geometric(random: Random, mean: float, high: int) -> int:
    """1, 2, ... with this mean before clipping: every further step is as likely as the last."""
    if mean <= 1:
        return 1
    draw = 1 + int(math.log(1.0 - random.random()) / math.log(1.0 - 1.0 / mean))
    return min(high, draw)


class Zipf:
    """0 .. count-1, number k with weight 1 / (k + 1) ** exponent."""

    __slots__ = ("_cumulated", "_numbers")

    def __init__(self, count: int, exponent: float) -> None:
        self._numbers = range(count)
        self._cumulated = list(accumulate((k + 1) ** -exponent for k in range(count)))

    def draw(self, random: Random) -> int:
        return random.choices(self._numbers, cum_weights=self._cumulated)[0]
