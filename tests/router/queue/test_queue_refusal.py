"""Refusal in time: who is refused, when to come again, and that nobody waits for ever."""

from __future__ import annotations

import pytest
from queue_world import World

from router.queue.refusal import Calibration, Flow, RetryAfter


def test_what_would_come_too_late_is_refused_and_says_when_to_come_again() -> None:
    world = World(1, queue_door=0.0)
    for _ in range(3):
        world.ask(1000.0)
    late = world.ask(100.0, limit=2.0)
    (refusal,) = late.refusals
    assert refusal.why == "late"
    assert refusal.expected == 3.0
    assert 1.1 <= refusal.retry_after <= 1.1 * 1.5  # 3 s before it, and 2 - .1 s to wait for it
    assert world.ask(100.0, limit=4.0).sent


def test_a_huge_prompt_is_not_refused_for_its_own_size() -> None:
    world = World(1, queue_door=0.0)
    assert world.ask(60_000.0, limit=2.0).sent
    world = World(1, queue_door=0.0)
    world.ask(1000.0)
    assert world.ask(60_000.0, limit=2.0).refusals  # it may wait for a quarter of the limit


def test_sessions_in_progress_are_not_refused() -> None:
    world = World(1, queue_door=0.9)
    one = world.ask(10.0, session="s")
    world.end(one)
    for _ in range(5):
        world.ask(1000.0, prefix=99)
    assert world.ask(100.0, session="s", limit=1.0).sent
    assert world.ask(100.0, session="new", limit=1.0, prefix=99).refusals


def test_predictions_are_stretched_by_what_waits_really_were() -> None:
    calibration = Calibration()
    for _ in range(200):
        calibration.saw(1.0, 3.0)
    assert calibration.stretch == pytest.approx(3.0, rel=0.05)
    assert calibration.late(2.0, 0.0, 0.5, 0.1) <= 0.0
    assert calibration.late(2.0, 0.0, 0.7, 0.1) > 0.0
    fast = Calibration()
    for _ in range(200):
        fast.saw(1.0, 0.5)
    assert fast.stretch == 1.0


def test_retry_after_is_spread_and_bounded() -> None:
    again = RetryAfter(seed=1)
    many = [again(10.0) for _ in range(500)]
    assert min(many) >= 10.0
    assert max(many) <= 15.0
    assert max(many) - min(many) > 4.0
    assert again(0.0) == 1.0
    assert again(1e9) == 60.0


def test_the_doors_flow_is_a_mean_that_forgets() -> None:
    flow = Flow()
    assert flow.rate(0.0) == 0.0
    for second in range(200):
        flow.passed(500.0, float(second))
    assert flow.rate(200.0) == pytest.approx(500.0, rel=0.05)
    assert flow.rate(400.0) < 2.0


def test_nobody_waits_longer_than_the_timeout() -> None:
    world = World(1, queue_door=0.9, queue_timeout=60.0)
    world.ask(8000.0, session="a")
    parked = world.ask(8000.0, session="b")
    world.turn_to(59.0)
    assert not parked.refusals
    world.turn_to(60.5)
    assert [each.why for each in parked.refusals] == ["expired"]
    assert world.queue.outcomes["expired"] == 1


def test_more_than_may_wait_are_refused() -> None:
    world = World(1, queue_door=0.9, queue_limit=2)
    asked = [world.ask(8000.0, session=f"s{number}") for number in range(4)]
    assert [[each.why for each in one.refusals] for one in asked] == [[], [], [], ["full"]]


def test_a_request_for_no_replica_at_the_door_is_told_so() -> None:
    world = World(1, queue_door=0.9)
    world.ask(8000.0, session="a")
    parked = world.ask(8000.0, session="b")
    world.eligible = 0
    world.queue.tick(0.5)
    assert [each.why for each in parked.refusals] == ["no_replica"]
