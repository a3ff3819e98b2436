"""What a fleet has to hold, such as ttft_p90=2s, and whether runs held it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from loadgen.results.columns import Columns, Floats
from loadgen.results.records import Records
from loadgen.suggest import did_you_mean
from router.config.units import parse_duration

MEASURES = ("ttft", "tpot", "e2e")
PARTS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
DRAWS = 200


class Objective(msgspec.Struct, frozen=True):
    """The most seconds of one percentile of one measure."""

    measure: str
    part: str
    most: float

    @property
    def name(self) -> str:
        """As it is written."""
        return f"{self.measure}_{self.part}"


class Measured(msgspec.Struct, frozen=True):
    """A value in seconds with its 95% interval over runs and sessions."""

    name: str
    value: float
    low: float
    high: float


def parse_objectives(text: str) -> list[Objective]:
    """Of "ttft_p90=2s,tpot_p90=50ms". Raises ValueError."""
    found = []
    known = [f"{measure}_{part}" for measure in MEASURES for part in PARTS]
    for item in filter(None, text.split(",")):
        name, sign, value = item.strip().partition("=")
        if name not in known:
            like = did_you_mean(name, known)
            raise ValueError(
                f"--slo {name!r}{like or ':'} use {', '.join(MEASURES)}, each with _p50, _p90, "
                "_p95 or _p99, such as ttft_p90=2s"
            )
        try:
            most = parse_duration(value) if sign else 0.0
        except ValueError as error:
            raise ValueError(f"--slo {item}: {error}") from None
        if most <= 0:
            raise ValueError(f"--slo {item!r}: write a time above 0, such as {name}=500ms")
        measure, part = name.split("_")
        found.append(Objective(measure, part, most))
    if not found:
        raise ValueError("--slo needs at least one objective, such as ttft_p90=2s")
    if len({each.name for each in found}) < len(found):
        raise ValueError(f"--slo {text}: each objective once")
    return found


class _Run:
    """One run's values with the sessions they are of."""

    def __init__(self, records: Records) -> None:
        columns = Columns(records)
        sessions, place = np.unique(columns.session, return_inverse=True)
        self.sessions = len(sessions)
        self.values: dict[str, tuple[Floats, Floats]] = {}
        """By measure: (values, the place of each one's session), ascending by value."""
        kept = {
            "ttft": (columns.ttft, columns.ok),
            "tpot": (columns.tpot, columns.has_tpot),
            "e2e": (columns.e2e, columns.ok),
        }
        for name, (values, which) in kept.items():
            self.values[name] = values[which], place[which]


def measured(runs: Sequence[Records], objectives: Sequence[Objective]) -> list[Measured]:
    """Of all runs together; nothing answered is infinitely late."""
    each = [_Run(run) for run in runs]
    random = np.random.default_rng(0)
    draws: dict[str, list[float]] = {objective.name: [] for objective in objectives}
    for _ in range(DRAWS):
        times = np.bincount(random.integers(len(each), size=len(each)), minlength=len(each))
        weights = [
            count
            * np.bincount(random.integers(run.sessions, size=run.sessions), minlength=run.sessions)
            if run.sessions
            else np.zeros(0)
            for count, run in zip(times.astype(np.float64), each, strict=True)
        ]
        for objective in objectives:
            draws[objective.name].append(_quantile(each, weights, objective))
    whole = [np.ones(run.sessions) for run in each]
    found = []
    for objective in objectives:
        low, high = np.percentile(draws[objective.name], (2.5, 97.5), method="nearest")
        value = _quantile(each, whole, objective)
        found.append(Measured(objective.name, value, float(low), float(high)))
    return found


def _quantile(runs: Sequence[_Run], weights: Sequence[Floats], objective: Objective) -> float:
    values = np.concatenate([run.values[objective.measure][0] for run in runs])
    heavy = np.concatenate(
        [own[run.values[objective.measure][1]] for own, run in zip(weights, runs, strict=True)]
    )
    order = np.argsort(values, kind="stable")
    heaped = np.cumsum(heavy[order])
    if not len(heaped) or heaped[-1] <= 0:
        return float("inf")
    place = int(np.searchsorted(heaped, PARTS[objective.part] * heaped[-1], side="left"))
    return float(values[order[min(place, len(order) - 1)]])


def broken(found: Sequence[Measured], objectives: Sequence[Objective]) -> list[Measured]:
    """Those whose interval does not lie within its objective."""
    most = {objective.name: objective.most for objective in objectives}
    return [each for each in found if each.high > most[each.name]]
