"""When sessions arrive, and where a plan ends."""

from __future__ import annotations

from itertools import islice

import pytest

from loadgen.workloads import (
    Arrivals,
    Closed,
    Fixed,
    Plan,
    Poisson,
    Ramp,
    Session,
    Step,
    Traced,
    make,
)
from loadgen.workloads.arrivals import due, mean_steps


def times(name: str, arrivals: Arrivals, count: int, seed: int = 0) -> list[float]:
    return [at for at, _ in islice(due(make(name), arrivals, seed), count)]


def test_every_arm_gets_the_same_arrivals() -> None:
    for arrivals in (Poisson(5.0), Fixed(5.0), Ramp(1.0, 9.0, 60.0)):
        assert times("agent", arrivals, 50) == times("agent", arrivals, 50)
        assert times("agent", arrivals, 50) == sorted(times("agent", arrivals, 50))
    assert times("agent", Poisson(5.0), 5) != times("agent", Poisson(5.0), 5, seed=1)


def test_poisson_has_its_rate_in_requests() -> None:
    last = times("unique", Poisson(50.0), 5000)[-1]
    assert 5000 / last == pytest.approx(50.0, rel=0.06)
    steps = mean_steps(make("chat"), 0)
    assert steps > 2
    last = times("chat", Poisson(50.0), 2000)[-1]
    assert 2000 * steps / last == pytest.approx(50.0, rel=0.08)


def test_fixed_is_fixed() -> None:
    assert times("unique", Fixed(4.0), 4) == [0.0, 0.25, 0.5, 0.75]


def test_a_group_arrives_together() -> None:
    found = times("burst", Fixed(40.0), 60)
    assert found == [0.0] * 20 + [0.5] * 20 + [1.0] * 20


def test_a_ramp_grows() -> None:
    found = times("unique", Ramp(10.0, 100.0, 50.0), 4000)
    early = sum(at < 10 for at in found) / 10
    late = sum(40 <= at < 50 for at in found) / 10
    assert early == pytest.approx(19, rel=0.3)
    assert late == pytest.approx(91, rel=0.15)


def test_a_closed_loop_spreads_its_first_sessions() -> None:
    assert times("unique", Closed(4, spread=2.0), 6) == [0.0, 0.5, 1.0, 1.5, 0.0, 0.0]


class Timed:
    """Three sessions at times of their own."""

    name, timed, group = "timed", True, 1

    def sessions(self, seed: int) -> list[Session]:
        (step,) = next(make("unique").sessions(0)).steps
        return [
            Session(n, (step, Step(step.prompt, step.output, (0,))), n * 10.0) for n in range(3)
        ]


def test_a_trace_keeps_its_times_at_another_speed() -> None:
    plan = Plan(Timed(), Traced(2.0))  # type: ignore[arg-type]
    assert [at for at, _ in plan.sessions()] == [0.0, 5.0, 10.0]


def test_a_plan_ends_by_time_or_by_requests() -> None:
    by_time = Plan(Timed(), Traced(1.0), duration=15.0)  # type: ignore[arg-type]
    assert [at for at, _ in by_time.sessions()] == [0.0, 10.0]
    by_count = Plan(Timed(), Traced(1.0), requests=3)  # type: ignore[arg-type]
    assert [session.number for _, session in by_count.sessions()] == [0, 1]
