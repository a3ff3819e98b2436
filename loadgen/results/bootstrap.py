"""Differences between arms with confidence intervals.

Requests of one session, and of one run, are not independent. So runs (repeats) are drawn first and
then sessions within them, both with replacement, and always the same ones for both arms, which had
the same arrivals: a paired two-level bootstrap (Davison and Hinkley, Bootstrap Methods, 1997,
section 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from loadgen.results.columns import Columns
from loadgen.results.records import Records
from loadgen.results.schema import Difference

DRAWS = 400
ONE_RUN = (
    "one run of each arm: the intervals do not cover what changes from run to run (use --repeats)"
)
"""What to say with differences of arms that ran once."""
Floats = npt.NDArray[np.float64]


class _Sample:
    """One run of one arm, ready to be weighted by session."""

    def __init__(self, records: Records, sessions: npt.NDArray[np.int64]) -> None:
        columns = Columns(records)
        ok = columns.ok
        self.place = np.searchsorted(sessions, columns.session[ok])
        self.ttft = columns.ttft[ok] * 1e3
        self.e2e = columns.e2e[ok] * 1e3
        told = columns.told[ok]
        self.prompt = np.where(told, columns.prompt[ok], 0).astype(np.float64)
        self.cached = np.where(told, columns.cached[ok], 0).astype(np.float64)


class _Weighted:
    """All runs of one arm, joined, with a weight for each request."""

    def __init__(self, samples: Sequence[_Sample]) -> None:
        self.samples = samples
        self.ttft = np.concatenate([sample.ttft for sample in samples])
        self.e2e = np.concatenate([sample.e2e for sample in samples])
        self.prompt = np.concatenate([sample.prompt for sample in samples])
        self.cached = np.concatenate([sample.cached for sample in samples])
        self._by_ttft = np.argsort(self.ttft)
        self._by_e2e = np.argsort(self.e2e)

    def weights(self, drawn: Sequence[Floats]) -> Floats:
        return np.concatenate(
            [weight[sample.place] for weight, sample in zip(drawn, self.samples, strict=True)]
        )

    def ttft_at(self, weights: Floats, share: float) -> float:
        return _quantile(self.ttft, self._by_ttft, weights, share)

    def e2e_at(self, weights: Floats, share: float) -> float:
        return _quantile(self.e2e, self._by_e2e, weights, share)


def _quantile(values: Floats, order: npt.NDArray[np.intp], weights: Floats, share: float) -> float:
    """The least value that so large a share of the weight does not exceed."""
    heaped = np.cumsum(weights[order])
    if not len(heaped) or heaped[-1] <= 0:
        return 0.0
    place = int(np.searchsorted(heaped, share * heaped[-1], side="left"))
    return float(values[order[min(place, len(order) - 1)]])


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


_Metric = Callable[[_Weighted, Floats], float]
_METRICS: dict[str, _Metric] = {
    "hit_rate": lambda a, w: _ratio(float(w @ a.cached), float(w @ a.prompt)),
    "ttft_ms.mean": lambda a, w: _ratio(float(w @ a.ttft), float(w.sum())),
    "ttft_ms.p50": lambda a, w: a.ttft_at(w, 0.50),
    "ttft_ms.p90": lambda a, w: a.ttft_at(w, 0.90),
    "ttft_ms.p99": lambda a, w: a.ttft_at(w, 0.99),
    "e2e_ms.mean": lambda a, w: _ratio(float(w @ a.e2e), float(w.sum())),
    "e2e_ms.p90": lambda a, w: a.e2e_at(w, 0.90),
}


def differences(
    baseline: tuple[str, Sequence[Records]],
    arm: tuple[str, Sequence[Records]],
    *,
    load: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
    paired: bool = True,
) -> list[Difference]:
    """arm minus baseline, at this load. Both have one Records for each repeat; paired ones are in
    the same order and had the same arrivals, others are drawn independently of each other.

    Raises ValueError when paired repeats are not as many. With one repeat, the interval knows
    nothing of what changes from run to run."""
    (base_name, base_runs), (arm_name, arm_runs) = baseline, arm
    if (paired and len(base_runs) != len(arm_runs)) or not base_runs or not arm_runs:
        raise ValueError("both arms need the same number of runs, at least one")
    base_sessions = [np.unique(Columns(run).session) for run in base_runs]
    arm_sessions = [np.unique(Columns(run).session) for run in arm_runs]
    if paired:
        both = zip(base_sessions, arm_sessions, strict=True)
        base_sessions = arm_sessions = [np.union1d(one, other) for one, other in both]
    ours = _weighted(base_runs, base_sessions)
    theirs = _weighted(arm_runs, arm_sessions)
    if not len(ours.ttft) or not len(theirs.ttft):
        return []
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {name: [] for name in _METRICS}
    for _ in range(draws):
        drawn = _drawn(random, base_sessions)
        base_weights = ours.weights(drawn)
        arm_weights = theirs.weights(drawn if paired else _drawn(random, arm_sessions))
        for name, metric in _METRICS.items():
            found[name].append(metric(theirs, arm_weights) - metric(ours, base_weights))
    base_ones = ours.weights([np.ones(len(own)) for own in base_sessions])
    arm_ones = theirs.weights([np.ones(len(own)) for own in arm_sessions])
    result = []
    for name, metric in _METRICS.items():
        before = metric(ours, base_ones)
        value = metric(theirs, arm_ones) - before
        low, high = (float(x) for x in np.percentile(found[name], (2.5, 97.5)))
        relative = value / before if before else None
        result.append(Difference(name, base_name, arm_name, value, low, high, relative, load))
    return result


def _weighted(runs: Sequence[Records], sessions: Sequence[npt.NDArray[np.int64]]) -> _Weighted:
    return _Weighted([_Sample(run, own) for run, own in zip(runs, sessions, strict=True)])


def _drawn(random: np.random.Generator, sessions: Sequence[npt.NDArray[np.int64]]) -> list[Floats]:
    """How often each session is there: of runs drawn with replacement, and sessions of them."""
    runs = np.bincount(random.integers(len(sessions), size=len(sessions)), minlength=len(sessions))
    return [
        times * np.bincount(random.integers(len(own), size=len(own)), minlength=len(own))
        if len(own)
        else np.zeros(0)
        for times, own in zip(runs.astype(np.float64), sessions, strict=True)
    ]


def against_first(runs: Mapping[str, Sequence[Records]], *, load: float = 0.0) -> list[Difference]:
    """Every other arm minus the first one, by name, over the repeats that both have."""
    (base, base_runs), *others = runs.items()
    found: list[Difference] = []
    for name, own in others:
        both = min(len(base_runs), len(own))
        if both:
            found += differences((base, base_runs[:both]), (name, own[:both]), load=load)
    return found
