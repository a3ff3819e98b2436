from __future__ import annotations

from router.fleet.breaker import ERROR_WINDOW_S, MAX_COOLDOWN_S, Breaker, BreakerState


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(3, 2.0)
    assert [breaker.failed(now) for _ in range(3)] == [False, False, True]
    return breaker


def half_open() -> Breaker:
    breaker = opened()
    assert not breaker.tick(1.9)
    assert breaker.tick(2.0)
    assert breaker.state is BreakerState.HALF_OPEN
    return breaker


def test_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(3, 2.0)
    assert not breaker.troubled
    breaker.failed(0.0)
    breaker.failed(0.1)
    assert breaker.passes
    assert breaker.troubled
    assert breaker.failed(0.2)
    assert not breaker.passes


def test_a_success_in_between_starts_the_row_anew() -> None:
    breaker = Breaker(3, 2.0)
    for i in range(4):
        assert not breaker.failed(i)
        breaker.succeeded(i)
    assert breaker.passes


def test_failures_far_apart_are_still_in_a_row() -> None:
    breaker = Breaker(3, 2.0)
    assert [breaker.failed(i * 2 * ERROR_WINDOW_S) for i in range(3)] == [False, False, True]


def test_opens_by_error_rate_though_some_succeed() -> None:
    breaker = Breaker(3, 2.0)
    for _ in range(6):
        if breaker.failed(0.5):
            break
        breaker.succeeded(0.5)
    assert breaker.state is BreakerState.OPEN


def test_a_low_error_rate_leaves_it_closed() -> None:
    breaker = Breaker(3, 2.0)
    for i in range(30):
        assert not breaker.failed(i * 0.1)
        for _ in range(3):
            breaker.succeeded(i * 0.1)
    assert breaker.passes


def test_forgets_after_a_window_without_failure() -> None:
    breaker = Breaker(3, 2.0)
    breaker.failed(0.0)
    breaker.succeeded(ERROR_WINDOW_S + 0.1)
    assert not breaker.troubled


def test_half_open_admits_one_trial_at_a_time() -> None:
    breaker = half_open()
    assert breaker.passes
    breaker.admit(2.5)
    assert not breaker.passes
    breaker.withdraw()
    assert breaker.passes


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = half_open()
    breaker.admit(2.5)
    assert breaker.succeeded(3.0)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.passes


def test_a_trial_that_fails_opens_it_for_longer_up_to_a_limit() -> None:
    breaker = half_open()
    now, cooldowns = 2.0, []
    for _ in range(6):
        breaker.admit(now)
        assert breaker.failed(now)
        assert not breaker.tick(now + breaker.cooldown - 0.01)
        now += breaker.cooldown
        assert breaker.tick(now)
        cooldowns.append(breaker.cooldown)
    assert cooldowns == [4.0, 8.0, 16.0, 30.0, 30.0, MAX_COOLDOWN_S]


def test_a_trial_without_an_outcome_is_written_off() -> None:
    breaker = half_open()
    breaker.admit(2.0)
    assert not breaker.tick(31.9)
    assert breaker.tick(32.0)
    assert breaker.passes


def test_late_outcomes_do_not_move_an_open_breaker() -> None:
    breaker = opened()
    assert not breaker.failed(1.0)
    assert not breaker.succeeded(1.0)
    assert breaker.state is BreakerState.OPEN
    assert breaker.tick(2.0)


def test_the_cooldown_is_short_again_after_a_quiet_window() -> None:
    breaker = half_open()
    breaker.admit(2.0)
    breaker.failed(2.0)
    breaker.tick(6.0)
    breaker.succeeded(6.0)
    assert breaker.cooldown == 4.0
    breaker.succeeded(6.0 + ERROR_WINDOW_S + 0.1)
    assert breaker.cooldown == 2.0
    assert not breaker.troubled
    assert breaker.opens == 2
