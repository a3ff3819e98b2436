"""All cases of the page as one results file."""

from __future__ import annotations

from loadgen.reproduce.cases import Case
from loadgen.reproduce.command import as_results
from loadgen.reproduce.run import Outcome
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Difference


def test_arms_and_differences_say_which_case_they_are_of() -> None:
    outcomes = [
        Outcome(
            Case("agent", load, 20, "agent"),
            [summarise(name, Records(), load=load) for name in ("round_robin", "cache_aware")],
            [Difference("e2e_ms.mean", "round_robin", "cache_aware", -1.0, -2.0, -0.5, -0.1)],
            1.0,
        )
        for load in (45.0, 90.0)
    ]
    results = as_results(outcomes)
    assert [arm.name for arm in results.arms] == [
        f"agent {load}/s: {name}" for load in (45, 90) for name in ("round_robin", "cache_aware")
    ]
    assert [(each.baseline, each.arm, each.load) for each in results.differences] == [
        (f"agent {load}/s: round_robin", f"agent {load}/s: cache_aware", load) for load in (45, 90)
    ]
