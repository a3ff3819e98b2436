"""Pairs of replicas between which transfers fail are left alone for a while."""

from __future__ import annotations

from router.disaggregation.pairs import FIRST_SECONDS, LONGEST_SECONDS, Pairs


def test_a_pair_is_left_alone_longer_each_time() -> None:
    pairs = Pairs()
    now, seconds = 100.0, FIRST_SECONDS
    for _ in range(8):
        pairs.failed(1, 4, now)
        pairs.failed(1, 4, now + 0.1)  # one more that was under way
        assert pairs.shunned(4, now + 0.9 * seconds) == 0b10
        assert pairs.shunned(3, now + 0.9 * seconds) == 0
        now += seconds
        assert pairs.shunned(4, now) == 0
        seconds = min(2 * seconds, LONGEST_SECONDS)
    assert seconds == LONGEST_SECONDS


def test_a_success_or_a_restart_ends_it() -> None:
    pairs = Pairs()
    pairs.failed(1, 4, 0.0)
    pairs.failed(2, 4, 0.0)
    pairs.failed(2, 5, 0.0)
    assert pairs.shunned(4, 1.0) == 0b110
    pairs.worked(1, 4)
    assert pairs.shunned(4, 1.0) == 0b100
    pairs.forget(2)
    assert (pairs.shunned(4, 1.0), pairs.shunned(5, 1.0)) == (0, 0)
    # The next failure is a first one again.
    pairs.failed(1, 4, 20.0)
    assert pairs.shunned(4, 20.0 + FIRST_SECONDS) == 0
