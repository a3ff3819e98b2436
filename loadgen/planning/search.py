"""The fewest replicas that hold the objectives, what one more buys, and where it breaks."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from loadgen.engine import EngineParams
from loadgen.planning.fleet import Fleet, Trial, Trials

MOST_LOAD = 8.0
"""Times the load, beyond which nobody asks when it breaks."""
CLOSE = 0.05
"""How close the load at which it breaks is found, as a share of it."""

Watch = Callable[[Trial, float], None]


class Option(msgspec.Struct, frozen=True):
    """What may be bought; a fleet without its size."""

    preset: str
    params: EngineParams
    kv: float
    policy: str
    routers: int
    gpus: int
    offload_gb: float = 0.0
    """Of the tier that its parameters have."""

    def fleet(self, replicas: int) -> Fleet:
        """Of so many replicas."""
        return Fleet(
            self.preset, replicas, self.kv, self.policy, self.routers, self.gpus, self.offload_gb
        )


class Answer(msgspec.Struct, frozen=True):
    """What an option comes to."""

    best: Trial | None
    """The fewest replicas that hold the objectives; None where as many as may be do not."""
    tried: dict[int, Trial]
    """By replicas."""


def fewest(trials: Trials, option: Option, most: int, watch: Watch) -> Answer:
    """By doubling and halving: more replicas are taken to be no worse. Each one less than the best
    is tried too."""
    tried: dict[int, Trial] = {}

    def holds(replicas: int) -> bool:
        if replicas not in tried:
            tried[replicas] = trials.run(option.fleet(replicas), option.params)
            watch(tried[replicas], 1.0)
        return tried[replicas].holds

    low, high = 0, min(most, _guess(trials, option))
    while not holds(high):
        low = high
        if high == most:
            return Answer(None, tried)
        high = min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return Answer(tried[high], tried)


def _guess(trials: Trials, option: Option) -> int:
    """Replicas whose prefill alone, were all possible reuse had, takes all their time."""
    prepared = trials.prepared(64)
    work = sum(
        (job.prompt_tokens - job.possible) / option.params.prefill_rate
        + job.output_tokens * option.params.step_request_seconds
        for _, jobs in prepared.sessions
        for job in jobs
    )
    seconds = max((at for at, _ in prepared.sessions), default=0.0)
    return max(1, round(work / seconds)) if seconds else 1


class Breaking(msgspec.Struct, frozen=True):
    """How much more load a fleet takes."""

    holds: float
    """Times the load at which it still holds."""
    breaks: Trial | None
    """What it does a little above; None where it holds MOST_LOAD times the load."""
    at: float
    """The load of that."""


def breaking(trials: Trials, best: Trial, params: EngineParams, watch: Watch) -> Breaking:
    """Found by doubling and halving the load."""
    low, high = 1.0, 1.0
    found: Trial | None = None
    while found is None and high < MOST_LOAD:
        high *= 1.5
        trial = trials.run(best.fleet, params, high)
        watch(trial, high)
        if trial.holds:
            low = high
        else:
            found = trial
    if found is None:
        return Breaking(low, None, low)
    while high - low > CLOSE * low:
        middle = (low + high) / 2
        trial = trials.run(best.fleet, params, middle)
        watch(trial, middle)
        if trial.holds:
            low = middle
        else:
            high, found = middle, trial
    return Breaking(low, found, high)
