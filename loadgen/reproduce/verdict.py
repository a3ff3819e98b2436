"""Where our policy stands among the others, from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from operator import attrgetter

from loadgen.reproduce.cases import OURS, POOLED
from loadgen.results.schema import Arm

METRICS = {"ttft_ms.mean": 0.02, "ttft_ms.p90": 0.02, "e2e_ms.mean": 0.02, "ttft_ms.p99": 0.05}
"""Judged, the less the better; fields of Arm. Within so much of the best counts as the best: the
last hundredth of a few thousand requests is more a matter of chance."""


def value(arm: Arm, metric: str) -> float:
    """A field by its path."""
    return float(attrgetter(metric)(arm))


def best(arms: Sequence[Arm], metric: str) -> Arm:
    """The arm with the least value of a metric."""
    return min(arms, key=lambda arm: value(arm, metric))


def rivals(arms: Sequence[Arm]) -> list[Arm]:
    """The rules that ours is judged by: all but itself and the pooled server, which is no rule."""
    return [arm for arm in arms if arm.name not in (OURS, POOLED)]


def behind(arm: Arm, others: Sequence[Arm], metric: str) -> float:
    """How much more than the best other's; negative when arm is the best."""
    return value(arm, metric) / value(best(others, metric), metric) - 1


def geometric(ratios: Sequence[float]) -> float:
    """The geometric mean of some ratios."""
    return exp(sum(map(log, ratios)) / len(ratios))
