"""How fast replicas are, learned from what was seen of them."""

from __future__ import annotations

import random

import pytest

from router.scheduling.accounting import expected_step
from router.scheduling.learning import Speeds
from router.types import STEP_REQUEST_SECONDS, STEP_TOKEN_SECONDS, Load


def prefills(speeds: Speeds, slot: int, rate: float, overhead: float, count: int = 200) -> None:
    """Prompts of 600 to 4,000 tokens, each with an overhead and up to a step's wait."""
    rng = random.Random(slot)
    for _ in range(count):
        tokens = rng.uniform(600, 4000)
        speeds.saw_prefill(slot, tokens, overhead + rng.uniform(0, 0.02) + tokens / rate)


@pytest.mark.parametrize("rate", [2_600.0, 20_000.0, 60_000.0])
def test_an_overhead_is_told_from_the_speed(rate: float) -> None:
    loads = [Load() for _ in range(2)]
    speeds = Speeds(loads)
    prefills(speeds, 0, rate, 0.03)
    assert loads[0].prefill_rate == pytest.approx(rate, rel=0.2)
    assert loads[1].prefill_rate == loads[0].prefill_rate  # nothing is known of it


def test_prompts_that_are_alike_err_low() -> None:
    loads = [Load()]
    speeds = Speeds(loads)
    for _ in range(50):
        speeds.saw_prefill(0, 1000.0, 0.08)
    assert loads[0].prefill_rate == pytest.approx(12_500.0, rel=0.2)
    speeds.saw_prefill(0, 100.0, 9.0)  # too short to say anything
    assert loads[0].prefill_rate == pytest.approx(12_500.0, rel=0.2)


def test_one_that_waited_for_something_else_does_not_undo_the_others() -> None:
    loads = [Load()]
    speeds = Speeds(loads)
    prefills(speeds, 0, 20_000.0, 0.03)
    speeds.saw_prefill(0, 2000.0, 60.0)
    assert loads[0].prefill_rate == pytest.approx(20_000.0, rel=0.25)


def test_a_replica_that_becomes_slow_is_found_out() -> None:
    loads = [Load() for _ in range(3)]
    speeds = Speeds(loads)
    for slot in range(3):
        prefills(speeds, slot, 20_000.0, 0.03)
    prefills(speeds, 1, 5_000.0, 0.1)
    assert loads[1].prefill_rate == pytest.approx(5_000.0, rel=0.3)
    assert loads[0].prefill_rate == loads[2].prefill_rate == pytest.approx(20_000.0, rel=0.2)


def steps(speeds: Speeds, slot: int, base: float, times: float, count: int = 200) -> None:
    """Answers beside 1 to 60 others; each step takes `times` the default for what is in flight."""
    rng = random.Random(slot)
    for _ in range(count):
        running = rng.randint(1, 60)
        load = Load(in_flight=running, context_tokens=running * rng.uniform(500, 4000))
        expected = expected_step(load)
        speeds.saw_decode(slot, expected, base + times * expected + rng.uniform(0, 0.001))


@pytest.mark.parametrize("times", [0.5, 1.0, 6.6])
def test_decode_steps_are_learned(times: float) -> None:
    loads = [Load() for _ in range(2)]
    speeds = Speeds(loads)
    steps(speeds, 0, 0.016, times)
    for load in loads:
        assert load.step_seconds == pytest.approx(0.0165, rel=0.2)
        assert load.step_request_seconds == pytest.approx(times * STEP_REQUEST_SECONDS, rel=0.25)
        assert load.step_token_seconds == pytest.approx(times * STEP_TOKEN_SECONDS, rel=0.25)


def test_replicas_that_are_about_alike_look_alike() -> None:
    loads = [Load() for _ in range(3)]
    speeds = Speeds(loads)
    for slot, base in enumerate((0.015, 0.016, 0.040)):
        steps(speeds, slot, base, 1.0)
    assert loads[0].step_seconds == loads[1].step_seconds
    assert loads[2].step_seconds > 2 * loads[0].step_seconds
    assert len({load.step_token_seconds for load in loads}) == 1
