from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.fleet.learn import STEPS_PER_DOUBLING, ModelFacts, SpeedLearner, Speeds
from router.fleet.load import finished, first_token, routed, undo
from router.types import Load


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.booleans()), max_size=30
    ),
    seed=st.integers(),
)
def test_books_return_to_zero(requests: list[tuple[int, int, bool]], seed: int) -> None:
    load, rng, now = Load(prefill_rate=3333.3), random.Random(seed), 5.0
    todo = [[float(u), float(u + more), answered, 0] for u, more, answered in requests]
    while todo:
        now += rng.random()
        request = rng.choice(todo)
        uncached, tokens, answered, stage = request
        request[3] += 1
        if stage == 0:
            routed(load, uncached, tokens, now)
            assert load.busy_until >= now + uncached / load.prefill_rate - 1e-9
        elif not answered:
            undo(load, uncached, tokens, now)
            todo.remove(request)
        elif stage == 1:
            first_token(load, uncached, now)
        else:
            finished(load, uncached, tokens)
            todo.remove(request)
        assert load.queued_tokens >= 0
        assert load.in_flight >= 0
    assert (load.queued_tokens, load.in_flight) == (0.0, 0)
    assert (load.context_tokens, load.kv_tokens) == (0.0, 0.0)
    assert load.busy_until <= now


def test_the_clock_follows_first_tokens() -> None:
    load = Load(prefill_rate=1000.0)
    routed(load, 2000.0, 2000.0, 10.0)
    routed(load, 1000.0, 1000.0, 10.0)
    assert load.busy_until == 13.0
    first_token(load, 2000.0, 11.0)
    assert load.busy_until == 12.0
    first_token(load, 1000.0, 15.0)
    assert load.busy_until == 12.0
    routed(load, 500.0, 600.0, 20.0)
    assert load.busy_until == 20.5


def speed(learner: SpeedLearner) -> float:
    return 2.0 ** (learner.step / STEPS_PER_DOUBLING)


class TestSpeedLearner:
    def test_finds_a_speed_and_errs_low(self) -> None:
        rng = random.Random(1)
        learner = SpeedLearner(Load())
        for _ in range(400):
            learner.saw(4000.0, 4000.0 / 7000.0 * rng.uniform(0.95, 1.4))
        assert 7000.0 / 1.45 < speed(learner) < 7000.0

    def test_follows_a_change(self) -> None:
        learner = SpeedLearner(Load())
        for _ in range(50):
            learner.saw(4000.0, 0.4)
        for _ in range(150):
            learner.saw(4000.0, 0.1)
        assert speed(learner) == pytest.approx(40_000.0, rel=0.25)

    def test_a_speed_between_two_steps_does_not_flicker(self) -> None:
        rng, published = random.Random(3), []
        learner = SpeedLearner(Load())
        for _ in range(600):
            learner.saw(4000.0, 4000.0 / (2.0**13.125 * rng.uniform(0.97, 1.03)))
            published.append(speed(learner))
        settled = published[200:]
        assert sum(a != b for a, b in pairwise(settled)) <= 1

    def test_short_prefills_say_nothing(self) -> None:
        learner = SpeedLearner(Load())
        for _ in range(50):
            learner.saw(100.0, 0.5)
        assert not learner.ready


class TestSpeeds:
    def test_replicas_alike_look_alike(self) -> None:
        rng, loads = random.Random(2), [Load() for _ in range(8)]
        speeds = Speeds(loads)
        for _ in range(300):
            for slot in range(8):
                # Alike, but for what disturbs each a little differently.
                speeds.saw(slot, 4000.0, 4000.0 / 9000.0 * rng.uniform(1.0, 1.05 + 0.03 * slot))
        assert len({load.prefill_rate for load in loads}) == 1

    def test_a_replica_nobody_asks_is_thought_to_be_like_the_others(self) -> None:
        loads = [Load(), Load()]
        speeds = Speeds(loads)
        for _ in range(100):
            speeds.saw(0, 4000.0, 0.1)
        assert loads[0].prefill_rate > 2 * Load().prefill_rate * 0.7
        assert loads[1].prefill_rate == loads[0].prefill_rate

    def test_another_kind_of_replica_is_told_apart(self) -> None:
        loads = [Load(), Load(), Load()]
        speeds = Speeds(loads)
        for _ in range(300):
            speeds.saw(0, 4000.0, 0.4)
            speeds.saw(1, 4000.0, 0.4)
            speeds.saw(2, 4000.0, 0.1)
        assert loads[0].prefill_rate == loads[1].prefill_rate
        assert loads[2].prefill_rate == pytest.approx(4 * loads[0].prefill_rate, rel=0.3)

    def test_a_slot_that_changed_hands_starts_anew(self) -> None:
        loads = [Load(), Load()]
        speeds = Speeds(loads)
        for _ in range(100):
            speeds.saw(0, 4000.0, 0.4)
            speeds.saw(1, 4000.0, 0.1)
        loads[1] = Load()
        for _ in range(100):
            speeds.saw(0, 4000.0, 0.4)
        assert loads[1].prefill_rate == loads[0].prefill_rate


def test_bytes_per_token_is_learned_and_forgotten() -> None:
    facts = ModelFacts()
    for _ in range(200):
        facts.saw_prompt(3000, 1000)
    assert facts.bytes_per_token == pytest.approx(3.0, rel=0.01)
    for _ in range(5000):
        facts.saw_prompt(5000, 1000)
    assert facts.bytes_per_token == pytest.approx(5.0, rel=0.03)


def test_answers_mean_is_learned_and_forgotten() -> None:
    facts = ModelFacts()
    for _ in range(100):
        facts.saw_answer(10)
    assert 10 < facts.output_tokens < 14
    for _ in range(2000):
        facts.saw_answer(500)
    assert facts.output_tokens == pytest.approx(500, rel=0.01)
