from __future__ import annotations

from router.config import Settings
from router.fleet.health import FLAP_MEMORY_S, MAX_PROBE_INTERVAL_S, Health, HealthState
from router.fleet.reader import Failure, ReadError

SLOW = ReadError("slow", Failure.SLOW)
BAD = ReadError("503", Failure.BAD)
GONE = ReadError("gone", Failure.REFUSED)


def ready() -> Health:
    health = Health(1.0, 2, 0.0)
    assert health.state is HealthState.STARTING
    assert health.good(0.0)
    return health


def test_some_probes_must_fail_one_after_the_other() -> None:
    health = ready()
    assert not health.bad(SLOW, 1.0)
    assert health.suspect
    assert not health.good(2.0)
    assert not health.bad(SLOW, 3.0)
    assert health.bad(SLOW, 4.0)
    assert (health.state, health.reason, health.since) == (HealthState.UNHEALTHY, "slow", 4.0)


def test_live_traffic_that_cannot_connect_takes_it_out_at_once() -> None:
    health = ready()
    assert health.bad(GONE, 1.0, at_once=True)
    assert not health.bad(GONE, 1.1, at_once=True)
    assert health.state is HealthState.UNHEALTHY


def test_one_good_answer_brings_it_back() -> None:
    health = ready()
    health.bad(GONE, 1.0, at_once=True)
    assert health.good(2.0)
    assert (health.state, health.reason, health.failure) == (HealthState.READY, "", None)
    assert not health.bad(SLOW, 3.0)


def test_one_that_never_was_ready_is_out_at_the_first_failure() -> None:
    health = Health(1.0, 2, 0.0)
    assert health.bad(GONE, 1.0)
    assert not health.was_refused


def test_the_worst_failure_is_remembered_until_it_is_back() -> None:
    health = ready()
    health.bad(SLOW, 1.0)
    health.bad(SLOW, 2.0)
    assert health.only_slow
    health.bad(GONE, 3.0)
    health.bad(SLOW, 4.0)
    assert health.was_refused
    assert not health.only_slow
    health.settled()
    assert not health.was_refused
    assert not health.only_slow


def test_probes_of_one_that_stays_away_get_rarer_up_to_a_limit() -> None:
    health = ready()
    assert 0.9 <= health.pause() <= 1.1
    health.bad(SLOW, 1.0)
    assert health.pause() <= 0.22
    health.bad(SLOW, 2.0)
    pauses = [health.pause() for _ in range(12)]
    assert pauses[0] <= 1.1
    assert all(
        0.9 * MAX_PROBE_INTERVAL_S <= pause <= 1.1 * MAX_PROBE_INTERVAL_S for pause in pauses[3:]
    )


def test_a_hurried_probe_comes_soon_but_not_for_one_that_flaps() -> None:
    health = ready()
    hurried = []
    for now in range(1, 9):
        health.bad(GONE, float(now), at_once=True)
        hurried.append(health.pause(hurried=True))
        health.good(float(now))
    assert hurried[0] <= 0.22
    assert hurried[-1] >= 0.9 * MAX_PROBE_INTERVAL_S
    health.good(9.0 + FLAP_MEMORY_S)
    health.bad(GONE, 99.0, at_once=True)
    assert health.pause(hurried=True) <= 0.22


def test_at_the_usual_intervals_a_frozen_replica_is_out_within_five_seconds() -> None:
    usual = Settings()
    worst = 0.0
    for _ in range(200):
        health = Health(usual.health_interval, usual.unhealthy_after, 0.0)
        health.good(0.0)
        now = health.pause()  # it froze just after a probe
        while health.state is HealthState.READY:
            now += health.patience(usual.health_timeout)
            if not health.bad(SLOW, now):
                now += health.pause()
        worst = max(worst, now)
    assert worst < 5.0
