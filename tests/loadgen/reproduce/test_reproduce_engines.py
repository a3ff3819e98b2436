"""The section about real engines: from a file, or said to be missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.engine import preset
from loadgen.live.compare import results_of
from loadgen.reproduce.engines import FILE, TITLE, read_engines, section
from loadgen.results.schema import Difference, Results, ResultsError, write_json
from loadgen.simulate import simulate
from loadgen.workloads import Plan, Poisson, make


@pytest.fixture(scope="module")
def results() -> Results:
    """As a comparison has them; where they are from makes no difference here."""
    plan = Plan(make("hot", {}), Poisson(20.0), seed=1, requests=40)
    arms = simulate(
        plan, ["round_robin", "cache_aware"], replicas=2, engine=preset("8b-h100"), seed=1
    )
    found = [
        Difference("hit_rate", "round_robin", "cache_aware", 0.123, 0.1, 0.15, 0.2),
        Difference("ttft_ms.p90", "round_robin", "cache_aware", -1234.4, -2000.0, -500.0, -0.5),
        Difference("ttft_ms.p90", "other", "cache_aware", 77.0, 70.0, 80.0, 0.5),
    ]
    made = results_of(
        "hot", arms, found, ["it was windy"], kind="compare", simulated=False,
        description="Two engines on a shelf.", settings={"command": "warmroute-loadgen compare x"},
    )  # fmt: skip
    made.arms[1].errors = {"timeout": 3}
    return made


def test_every_number_is_from_the_file(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    write_json(results, path)
    text = section(read_engines(path))
    assert f"## {TITLE}" in text
    assert "Two engines on a shelf." in text
    assert "\n    warmroute-loadgen compare x\n" in text
    for arm in results.arms:
        assert arm.hit_rate is not None
        ttft = " | ".join(
            f"{value:,.0f}"
            for value in (arm.ttft_ms.mean, arm.ttft_ms.p50, arm.ttft_ms.p90, arm.ttft_ms.p99)
        )
        assert f"| {arm.name} | {arm.hit_rate:.1%} | {ttft} | {arm.e2e_ms.mean:,.0f} |" in text
    assert "40 requests for each arm in 1 runs, 3 failed" in text
    assert (
        "| cache_aware | +12.3 points (+10.0 to +15.0) | - | - | -1,234 (-2,000 to -500) | - | - |"
        in text
    )
    assert "- it was windy" in text


def test_without_a_file_it_says_so(tmp_path: Path) -> None:
    text = section(read_engines(tmp_path / FILE.name))
    assert f"## {TITLE}" in text
    assert "`make engines` measures" in text
    assert "|" not in text


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    path.write_text(json.dumps({"version": 1}))
    with pytest.raises(ResultsError, match="not a results file"):
        read_engines(path)


def test_the_file_kept_here_can_be_read() -> None:
    path = Path(__file__).parents[3] / FILE
    if not path.exists():
        pytest.skip(f"there is no {FILE}: make engines")
    results = read_engines(path)
    assert results is not None
    assert not results.simulated
    assert [arm.name for arm in results.arms] == ["round_robin", "cache_aware", "cache_aware_exact"]
    assert results.settings["command"].startswith("warmroute-loadgen compare ")
