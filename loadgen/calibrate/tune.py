"""A fit brought closer to what mixed requests really took.

Requests measured apart from each other cannot tell where the time of a first token goes: into a
step, which decoding requests then wait for too, or beside it. Mixed requests can. So the fit of the
measurements is where this search begins, and what it must not leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp

import msgspec
import numpy as np

from loadgen.calibrate.check import Played, replayed
from loadgen.engine import EngineParams

_SCALED = (
    "prefill_rate",
    "step_base_seconds",
    "step_request_seconds",
    "step_token_seconds",
    "step_pair_seconds",
    "overhead_token_seconds",
)
_AWAY = 0.02
"""What it costs to move a parameter by a factor of e from what was measured, beside the squared
logarithms of simulated over measured."""
_STEPS = (0.4, 0.2, 0.1, 0.05)
"""How far a parameter is moved at a time, as a logarithm; a share by half of it."""
_EVALUATIONS = 600
_QUANTILES = tuple(part / 20 for part in range(1, 20))


class _Point(msgspec.Struct, frozen=True):
    moved: tuple[float, ...]
    """Logarithms of the factors of _SCALED, then of a prompt's fixed costs."""
    in_step: float
    """Share of the fixed costs that lies in a step."""
    serial: float
    """Share of the rest that requests pass one after another."""


def tune(found: EngineParams, plays: Sequence[Played]) -> EngineParams:
    """Parameters with which the model comes closest to the plays: to the TTFT's quantiles and the
    mean TPOT at every load. found: the fit of measurements. The same plays give
    the same parameters."""
    loads: dict[int, list[Played]] = {}
    for played in plays:
        loads.setdefault(played.at_a_time, []).append(played)

    def cost(point: _Point) -> float:
        params = _params(found, point)
        away = sum(each * each for each in point.moved)
        return _AWAY * away + sum(_distance(params, group) for group in loads.values())

    serial = found.overhead_serial_seconds / (found.overhead_seconds or 1.0)
    starts = [
        _Point((0.0,) * (len(_SCALED) + 1), in_step, share)
        for in_step in (0.0, 0.3, 0.6)
        for share in (serial, 0.3)
    ]
    return _params(found, _search(min(starts, key=cost), cost))


def _search(point: _Point, cost: Callable[[_Point], float]) -> _Point:
    """One coordinate after the other, by ever smaller steps, as long as it gets better."""
    best, left = cost(point), _EVALUATIONS
    for step in _STEPS:
        better = True
        while better and left > 0:
            better = False
            for other in _neighbours(point, step):
                left -= 1
                if (value := cost(other)) < best:
                    best, point, better = value, other, True
    return point


def _neighbours(point: _Point, step: float) -> list[_Point]:
    found = []
    for way in (step, -step):
        for number, value in enumerate(point.moved):
            moved = (*point.moved[:number], value + way, *point.moved[number + 1 :])
            found.append(msgspec.structs.replace(point, moved=moved))
        for share in ("in_step", "serial"):
            value = min(1.0, max(0.0, getattr(point, share) + way / 2))
            found.append(msgspec.structs.replace(point, **{share: value}))
    return found


def _params(found: EngineParams, point: _Point) -> EngineParams:
    *scales, fixed = map(exp, point.moved)
    values = {
        name: getattr(found, name) * scale for name, scale in zip(_SCALED, scales, strict=True)
    }
    fixed *= found.overhead_seconds
    beside = fixed * (1 - point.in_step)
    return msgspec.structs.replace(
        found,
        **values,
        step_prefill_seconds=fixed * point.in_step,
        overhead_seconds=beside,
        overhead_serial_seconds=beside * point.serial,
    )


def _distance(params: EngineParams, plays: Sequence[Played]) -> float:
    """The mean of squared logarithms of simulated over measured TTFT, over its quantiles, and that
    of the mean TPOT. Two quantiles alone would be met by chance: times to first token come in
    groups, by how many prefills they waited for."""
    real = [each.answered for played in plays for each in played.asked]
    model = [seen for played in plays for seen in replayed(played, params)]
    measured = np.quantile([each.first - each.sent for each in real], _QUANTILES)
    simulated = np.quantile([seen.ttft for seen in model], _QUANTILES)
    tpot = np.mean([each.tpot for each in real]) / np.mean([seen.tpot for seen in model])
    return float(np.mean(np.log(simulated / measured) ** 2) + np.log(tpot) ** 2)
