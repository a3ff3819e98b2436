"""Metrics against cases computed by hand."""

from __future__ import annotations

from array import array

import pytest

from loadgen.results.metrics import BUCKETS, summarise
from loadgen.results.records import NO_TIME, Gaps, Records
from loadgen.results.schema import Latency


def four_requests() -> Records:
    """Two replicas; the third request failed, the fourth wrote one token."""
    records = Records()
    common = {"step": 0, "tokens": 100, "possible_tokens": 60}
    records.add(
        session=0,
        scheduled=0.0,
        sent=0.1,
        first=0.5,
        end=1.5,
        replica="a",
        prompt_tokens=100,
        cached_tokens=50,
        output_tokens=11,
        **common,
    )
    records.add(
        session=1,
        scheduled=1.0,
        sent=1.0,
        first=1.1,
        end=2.0,
        replica="b",
        prompt_tokens=300,
        cached_tokens=30,
        output_tokens=4,
        **common,
    )
    records.add(
        session=2,
        scheduled=1.5,
        sent=1.5,
        first=NO_TIME,
        end=NO_TIME,
        replica="b",
        reason="status 503",
        **common,
    )
    records.add(
        session=3, scheduled=2.0, sent=2.0, first=4.0, end=4.0, replica="a",
        prompt_tokens=100, cached_tokens=0, output_tokens=1, **common,
    )  # fmt: skip
    records.gaps.extend(array("f", [0.1] * 10 + [0.3] * 3))
    return records


def test_by_hand() -> None:
    arm = summarise("x", four_requests(), objectives_ms={"ttft": 600, "tpot": 200})
    assert (arm.requests, arm.completed, arm.errors) == (4, 3, {"status 503": 1})
    assert arm.duration_s == 4.0
    # From when they were due, not from when they were sent.
    assert arm.ttft_ms.mean == pytest.approx((500 + 100 + 2000) / 3)
    assert arm.ttft_ms.p50 == pytest.approx(500)
    assert arm.ttft_ms.p90 == pytest.approx(500 + 0.8 * 1500)
    assert arm.ttft_ms.max == pytest.approx(2000)
    assert arm.e2e_ms.mean == pytest.approx((1500 + 1000 + 2000) / 3)
    # (end - first) / (tokens - 1); one token has none.
    assert arm.tpot_ms.count == 2
    assert arm.tpot_ms.mean == pytest.approx((100 + 300) / 2)
    assert arm.itl_ms.count == 13
    assert arm.itl_ms.mean == pytest.approx((10 * 100 + 3 * 300) / 13)
    assert arm.throughput.requests_per_s == pytest.approx(3 / 4)
    assert arm.throughput.input_tokens_per_s == pytest.approx(500 / 4)
    assert arm.throughput.output_tokens_per_s == pytest.approx(16 / 4)
    assert arm.hit_rate == pytest.approx(80 / 500)
    assert arm.upper_bound == pytest.approx(0.6)
    assert arm.goodput is not None
    # Only the first: the second misses TPOT, the fourth TTFT, the third failed.
    assert arm.goodput.requests_per_s == pytest.approx(1 / 4)
    assert arm.goodput.fraction == pytest.approx(1 / 4)


def test_replicas_and_balance() -> None:
    arm = summarise("x", four_requests(), replicas=("a", "b", "c"))
    a, b, c = arm.replicas
    assert [r.name for r in arm.replicas] == ["a", "b", "c"]
    assert (a.requests, a.errors, a.hit_rate) == (2, 0, pytest.approx(50 / 200))
    assert (b.requests, b.errors, b.hit_rate) == (2, 1, pytest.approx(30 / 300))
    assert (c.requests, c.hit_rate, c.ttft_ms.count) == (0, None, 0)
    assert a.ttft_ms.mean == pytest.approx(1250)
    assert arm.balance is not None
    # 2, 2 and 0 requests: mean 4/3, standard deviation sqrt(8/9).
    assert arm.balance.requests_max_over_mean == pytest.approx(1.5)
    assert arm.balance.requests_cv == pytest.approx((8 / 9) ** 0.5 / (4 / 3))
    # Work: 200 - 50 + 12, 300 - 30 + 4, 0.
    assert arm.balance.work_max_over_mean == pytest.approx(274 / ((162 + 274) / 3))


def test_hit_rate_over_time_is_of_what_ended_then() -> None:
    arm = summarise("x", four_requests())
    told = {
        round(place * arm.bucket_s, 2): value
        for place, value in enumerate(arm.hit_rate_over_time)
        if value is not None
    }
    assert list(told.values()) == [0.5, 0.1, 0.0]
    assert len(arm.hit_rate_over_time) == BUCKETS
    assert arm.ttft_quantiles_ms[50] == pytest.approx(500)


def test_engines_that_do_not_tell() -> None:
    records = Records()
    records.add(
        session=0, step=0, scheduled=0.0, sent=0.0, first=1.0, end=1.0, tokens=100,
        possible_tokens=0, output_tokens=1,
    )  # fmt: skip
    arm = summarise("x", records)
    assert arm.hit_rate is None
    assert arm.prompt_tokens == 100
    assert arm.hit_rate_over_time == [None] * BUCKETS
    assert arm.replicas == []
    assert arm.balance is None


def test_nothing_at_all() -> None:
    arm = summarise("x", Records(), objectives_ms={"ttft": 1.0})
    assert (arm.requests, arm.completed, arm.hit_rate, arm.upper_bound) == (0, 0, None, 0.0)
    assert arm.ttft_ms == Latency(0, *[None] * 7)
    assert summarise("x", Records(), replicas=("a", "b")).balance is None


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'speed'"):
        summarise("x", four_requests(), objectives_ms={"speed": 1.0})


def test_falling_behind_is_said() -> None:
    records = Records()
    for number in range(100):
        late = 0.2 if number > 90 else 0.0
        records.add(
            session=number, step=0, scheduled=number * 1.0, sent=number + late,
            first=number + late, end=number + late, tokens=1, possible_tokens=0,
        )  # fmt: skip
    arm = summarise("x", records)
    assert arm.schedule.behind
    assert arm.schedule.lag_p99_ms == pytest.approx(200)
    assert not summarise("x", four_requests()).schedule.lag_p50_ms


def test_gaps_stay_bounded_and_keep_their_mean() -> None:
    gaps = Gaps(limit=100)
    for number in range(10_000):
        gaps.add(number / 10_000)
    assert len(gaps.kept) < 100
    assert gaps.count == 10_000
    assert gaps.total / gaps.count == pytest.approx(0.5, rel=0.001)
    kept = sorted(gaps.kept)
    assert kept[len(kept) // 2] == pytest.approx(0.5, abs=0.05)


def test_repeats_are_one_arm_on_one_axis_of_time() -> None:
    arm = summarise("x", four_requests(), four_requests())
    once = summarise("x", four_requests())
    assert (arm.repeats, arm.requests, arm.duration_s) == (2, 8, 8.0)
    assert arm.ttft_ms.mean == pytest.approx(once.ttft_ms.mean)
    assert arm.throughput.requests_per_s == pytest.approx(once.throughput.requests_per_s)
    assert [r.requests for r in arm.replicas] == [4, 4]
    assert arm.bucket_s == pytest.approx(once.bucket_s)
    assert arm.hit_rate_over_time == once.hit_rate_over_time
    assert arm.replicas[0].hit_rate_over_time == once.replicas[0].hit_rate_over_time


def one_answer(replica: str, end: float, cached: int, prompt: int = 100) -> Records:
    records = Records()
    records.add(
        session=0, step=0, scheduled=0.0, sent=0.0, first=end, end=end, tokens=prompt,
        possible_tokens=0, prompt_tokens=prompt, cached_tokens=cached, output_tokens=1,
        replica=replica,
    )  # fmt: skip
    return records


def test_repeats_with_other_lengths_are_averaged_by_their_tokens() -> None:
    arm = summarise("x", one_answer("a", 12.0, 30, 300), one_answer("a", 11.5, 50))
    assert arm.bucket_s == pytest.approx(12.0 / BUCKETS)
    assert arm.hit_rate_over_time[-1] == pytest.approx(80 / 400)


def test_the_balance_of_repeats_is_that_of_each() -> None:
    """Replicas that were busy in different runs would seem even in all together."""
    arm = summarise("x", one_answer("a", 1.0, 0), one_answer("b", 1.0, 0))
    assert arm.balance is not None
    assert arm.balance.requests_max_over_mean == pytest.approx(2.0)


def test_replicas_come_in_the_order_they_are_named() -> None:
    names = [f"replica-{number}" for number in range(11)]
    arm = summarise("x", one_answer("z", 1.0, 0), replicas=names)
    assert [replica.name for replica in arm.replicas] == [*names, "z"]


def test_the_bound_is_of_what_succeeded() -> None:
    records = four_requests()
    records.possible_tokens[2] = 0
    assert summarise("x", records).upper_bound == pytest.approx(0.6)
