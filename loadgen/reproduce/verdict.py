"""Where our policy stands among the others, from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from operator import attrgetter

from loadgen.results.schema import Arm

METRICS = ("ttft_ms.mean", "ttft_ms.p90", "e2e_ms.mean")
"""Judged, the less the better; fields of Arm."""
CLOSE = 0.02
"""Within so much of the best counts as the best."""


def value(arm: Arm, metric: str) -> float:
    """A field by its path."""
    return float(attrgetter(metric)(arm))


def best(arms: Sequence[Arm], metric: str) -> Arm:
    """The one with the least."""
    return min(arms, key=lambda arm: value(arm, metric))


def behind(arm: Arm, others: Sequence[Arm], metric: str) -> float:
    """How much more than the best other's; negative when arm is the best."""
    return value(arm, metric) / value(best(others, metric), metric) - 1


def geometric(ratios: Sequence[float]) -> float:
    """Their geometric mean."""
    return exp(sum(map(log, ratios)) / len(ratios))
