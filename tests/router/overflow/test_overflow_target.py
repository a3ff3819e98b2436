"""The day's money of a target."""

from __future__ import annotations

import pytest

from router.overflow.overflow_file import parse_targets
from router.overflow.target import Target

DAY = 86_400.0
FILE = b"""
targets:
  - {name: a, url: 'http://a', key_env: K, models: {m: n}, prompt_price: 1, output_price: 2,
     daily_budget: 10}
"""


def made(share: float = 1.0) -> Target:
    return Target(parse_targets(FILE, {"K": "k"})[0], share, 3, 1.0)


def test_the_budget_begins_anew_at_utc_midnight() -> None:
    target = made()
    day = target.reserve("late", 8.0, 5 * DAY - 1.0, 0.0)
    assert not target.may_take(3.0, 5 * DAY - 1.0, 0.0)
    assert target.may_take(10.0, 5 * DAY, 0.0)
    target.reserve("late", 4.0, 5 * DAY, 0.0)
    # What yesterday paid for is not today's.
    target.settle(day, 8.0, 1.0, 5 * DAY)
    assert target.spent == 4.0
    assert target.money == 1.0
    # A clock that is set back gives nothing.
    assert not target.may_take(7.0, 4 * DAY, 0.0)


def test_a_worker_has_its_share() -> None:
    assert not made(0.5).may_take(6.0, 0.0, 0.0)


def test_the_cost_of_tokens() -> None:
    assert made().cost(1e6, 1e6) == 3.0


def test_an_open_breaker_lets_one_trial_through() -> None:
    target = made()
    target.breaker.failed(0.0, at_once=True)
    assert not target.may_take(1.0, 0.0, 0.5)
    assert target.may_take(1.0, 0.0, 1.5)
    target.reserve("late", 1.0, 0.0, 1.5)
    assert not target.may_take(1.0, 0.0, 1.6)
    target.breaker.succeeded(2.0)
    assert target.may_take(1.0, 0.0, 2.1)
    assert target.spent == pytest.approx(1.0)
