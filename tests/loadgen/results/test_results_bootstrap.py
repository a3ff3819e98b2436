"""Intervals: right where there is an effect, wide where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from loadgen.results.bootstrap import differences
from loadgen.results.records import Records
from loadgen.results.schema import Difference


def run(seed: int, shift: float = 0.0, cached: int = 50, sessions: int = 60) -> Records:
    random = np.random.default_rng(seed)
    records = Records()
    for session in range(sessions):
        slow = random.exponential(0.1)
        for step in range(3):
            ttft = float(slow + random.exponential(0.05) + shift)
            records.add(
                session=session, step=step, scheduled=0.0, sent=0.0, first=ttft, end=ttft + 1,
                tokens=100, possible_tokens=0, prompt_tokens=100, cached_tokens=cached,
                output_tokens=5,
            )  # fmt: skip
    return records


def by_metric(found: list[Difference]) -> dict[str, Difference]:
    return {each.metric: each for each in found}


def test_a_shift_is_found_with_its_size() -> None:
    base = [run(seed) for seed in range(3)]
    arm = [run(seed, shift=0.2, cached=80) for seed in range(3)]
    found = by_metric(differences(("a", base), ("b", arm)))
    for metric in ("ttft_ms.mean", "ttft_ms.p50", "ttft_ms.p90", "ttft_ms.p99", "e2e_ms.mean"):
        assert found[metric].value == pytest.approx(200)
        # The same sessions in both: pairing leaves nothing else than the shift.
        assert found[metric].low == pytest.approx(200)
        assert found[metric].high == pytest.approx(200)
    assert found["hit_rate"].value == pytest.approx(0.3)
    assert found["hit_rate"].relative == pytest.approx(0.6)
    assert (found["hit_rate"].baseline, found["hit_rate"].arm) == ("a", "b")


def test_noise_is_not_an_effect() -> None:
    covered = 0
    for start in range(0, 100, 10):
        base = [run(start + seed) for seed in range(3)]
        arm = [run(1000 + start + seed) for seed in range(3)]
        found = by_metric(differences(("a", base), ("b", arm), draws=200))["ttft_ms.mean"]
        assert found.low < found.high
        covered += found.low <= 0 <= found.high
    assert covered >= 7


def test_one_run_still_has_the_spread_of_its_sessions() -> None:
    found = by_metric(differences(("a", [run(1)]), ("b", [run(2, cached=80)])))
    for metric in ("ttft_ms.mean", "ttft_ms.p90", "e2e_ms.mean"):
        each = found[metric]
        assert each.low < each.value < each.high
        assert each.high - each.low > 5


def test_the_same_seed_gives_the_same_intervals() -> None:
    one = differences(("a", [run(1)]), ("b", [run(2)]), draws=50)
    assert one == differences(("a", [run(1)]), ("b", [run(2)]), draws=50)


def test_failures_are_left_out_and_sessions_may_differ() -> None:
    short = run(1, sessions=30)
    failing = Records()
    failing.add(
        session=0, step=0, scheduled=0.0, sent=0.0, first=9.0, end=9.0, tokens=1,
        possible_tokens=0, reason="timeout",
    )  # fmt: skip
    assert differences(("a", [short]), ("b", [failing])) == []
    assert by_metric(differences(("a", [short]), ("b", [run(1)])))["ttft_ms.mean"].value < 100


def test_runs_must_pair_up() -> None:
    with pytest.raises(ValueError, match="same number of runs"):
        differences(("a", [run(1)]), ("b", [run(1), run(2)]))
