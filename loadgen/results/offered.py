"""What an open loop really offers.

Sessions arrive so often that they bring the rate asked for once as many end as begin. Before that
most of their steps are still to come: a run that is short beside its sessions offers less."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.results.schema import Arm
from loadgen.workloads import Fixed, Plan, Poisson
from loadgen.workloads.arrivals import mean_steps, sample
from loadgen.workloads.types import Session

ENOUGH = 0.9
"""Share of the rate asked for below which it is said."""


class Offered(msgspec.Struct, frozen=True):
    """The load that a run was asked for, and the load that was due."""

    asked: float
    """The rate asked for, in requests a second."""
    told: float
    """Requests a second that were due in the time that counts."""
    warmup: int
    """Seconds after which as long a time has ENOUGH of the rate offered in it, on average."""
    counted: float
    """Seconds of the run that count, without warm-up."""


def ages(session: Session, answer: float, pause_scale: float = 1.0) -> list[float]:
    """Seconds from a session's start to each of its steps, were every answer to take so long."""
    found: list[float] = []
    for step in session.steps:
        began = max((found[before] + answer for before in step.after), default=0.0)
        found.append(began + step.pause * pause_scale)
    return found


def offered(plan: Plan, arms: Sequence[Arm], *, pause_scale: float = 1.0) -> Offered | None:
    """Of one load's arms; None where the rate was reached, and where none was asked for: a closed
    loop, a trace, a ramp."""
    if not isinstance(plan.arrivals, Poisson | Fixed) or not arms:
        return None
    asked = plan.arrivals.rate
    # Of the arms, the one that got furthest: that a slow one gets less far is its own result.
    answer = min(arm.e2e_ms.mean or 0.0 for arm in arms) / 1e3
    sessions = sample(plan.workload, plan.seed)
    old = np.sort([age for each in sessions for age in ages(each, answer, pause_scale)])
    begins, ends = plan.warmup, _last(plan) if plan.requests else plan.duration
    counted = ends - begins
    if not len(old) or counted <= 0:
        return None
    # Of steps at an age, sessions that began so long ago have brought theirs.
    reached = _between(old, begins, ends)
    if reached >= ENOUGH:
        return None
    told = reached * asked
    if not plan.requests and not plan.finish:
        told = max(arm.requests / arm.repeats for arm in arms) / counted
    if told >= ENOUGH * asked:
        return None
    return Offered(asked, told, _warmup(old, counted), counted)


def _last(plan: Plan) -> float:
    """The time at which the last session starts."""
    return max((at for at, _ in plan.sessions()), default=0.0)


def _between(old: npt.NDArray[np.float64], begins: float, ends: float) -> float:
    """Mean over that time of the share of steps that are no older than the run."""
    return float(np.mean((ends - np.clip(old, begins, ends)) / (ends - begins)))


def _warmup(old: npt.NDArray[np.float64], counted: float) -> int:
    few, enough = 0, int(old[-1]) + 1
    while few < enough:
        middle = (few + enough) // 2
        if _between(old, middle, middle + counted) < ENOUGH:
            few = middle + 1
        else:
            enough = middle
    return enough


def shortfall(
    points: Sequence[tuple[Plan, Sequence[Arm]]], *, pause_scale: float = 1.0
) -> list[str]:
    """A warning when less was offered than asked for at some of a run's loads."""
    found = [
        each
        for plan, arms in points
        if (each := offered(plan, arms, pause_scale=pause_scale)) is not None
    ]
    if not found:
        return []
    plan, _ = points[0]
    steps = mean_steps(plan.workload, plan.seed)
    rates = ", ".join(f"{each.told:.3g} of {each.asked:g}" for each in found)
    most = max(found, key=lambda each: each.warmup)
    longer = f"--warmup {most.warmup}s --duration {most.warmup + ceil(most.counted)}s"
    if plan.requests:
        longer += ", without --requests,"
    return [
        f"fewer requests a second were offered than asked for: {rates}. Sessions have {steps:.1f} "
        "requests on average, one after another, so an open loop only grows to its rate: "
        f"{longer} would offer about {ENOUGH:.0%} of it in the time that counts"
    ]
