"""What an open loop really offers of its rate."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.results.offered import ages
from loadgen.results.schema import Results, read_json
from loadgen.workloads import Session, Step, make


def simulated(tmp_path: Path, *flags: str) -> Results:
    out = tmp_path / "r"
    assert main(["simulate", "--policies", "random", *flags, f"--json={out}"]) == 0
    return read_json(out)


def test_ages_follow_answers_and_pauses() -> None:
    (step,) = next(make("unique").sessions(0)).steps
    steps = tuple(
        Step(step.prompt, step.output, after, pause)
        for after, pause in (((), 1.0), ((0,), 5.0), ((0,), 0.0), ((1, 2), 2.0))
    )
    assert ages(Session(0, steps), answer=10.0) == [1.0, 16.0, 11.0, 28.0]
    assert ages(Session(0, steps), answer=10.0, pause_scale=0.0) == [0.0, 10.0, 10.0, 20.0]


@pytest.mark.parametrize("workload", ["chat", "agent"])
def test_it_is_said_when_it_is_less_and_what_to_do(workload: str, tmp_path: Path) -> None:
    asked = ["--workload", workload, "--rate", "8"]
    results = simulated(tmp_path, *asked, "--duration", "30s")
    (warning,) = (text for text in results.warnings if "offered" in text)
    told = re.search(r"asked for: ([\d.]+) of 8\.", warning)
    assert told is not None
    assert float(told[1]) == pytest.approx(results.arms[0].requests / 30, rel=0.01)
    found = re.search(r"--warmup (\d+)s --duration (\d+)s", warning)
    assert found is not None
    assert int(found[2]) == int(found[1]) + 30
    longer = simulated(tmp_path, *asked, "--warmup", found[1], "--duration", found[2])
    # Sessions are few in so short a time, so their number varies.
    assert longer.arms[0].requests / 30 == pytest.approx(0.9 * 8, rel=0.35)
    assert longer.arms[0].requests > 1.5 * results.arms[0].requests


@pytest.mark.parametrize(
    "flags",
    [
        ["--workload", "unique", "--rate", "20", "--duration", "5s"],
        ["--workload", "chat", "--set", "turns=1", "--rate", "20", "--duration", "5s"],
        ["--workload", "chat", "--concurrency", "5", "--requests", "50"],
        ["--workload", "chat", "--set", "think=0", "--rate", "4", "--duration", "5m"],
    ],
)
def test_nothing_is_said_where_the_rate_is_reached(flags: list[str], tmp_path: Path) -> None:
    assert not [text for text in simulated(tmp_path, *flags).warnings if "offered" in text]


def test_each_load_of_a_sweep_is_told(tmp_path: Path) -> None:
    flags = ["--workload", "chat", "--rate", "5,10", "--requests", "60"]
    (warning,) = (text for text in simulated(tmp_path, *flags).warnings if "offered" in text)
    assert re.search(r"asked for: [\d.]+ of 5, [\d.]+ of 10\.", warning)
    assert "without --requests" in warning
