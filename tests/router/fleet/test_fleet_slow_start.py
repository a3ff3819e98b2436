from __future__ import annotations

from router.config import Settings
from router.fleet.fleet import Fleet
from router.fleet.slow_start import SlowStart, weight_after


def test_weight_is_a_line_from_a_tenth_to_one() -> None:
    assert [weight_after(t, 10.0) for t in (-1.0, 0.0, 5.0, 10.0, 99.0)] == [0.1, 0.1, 0.55, 1, 1]
    assert weight_after(0.0, 0.0) == 1.0


def test_weights_grow_with_ticks_and_drop_out_at_one() -> None:
    fleet = Fleet(Settings(replicas=("http://a", "http://b")))
    one, other = fleet.members()
    slow = SlowStart(10.0)
    slow.begin(one, 100.0)
    slow.begin(other, 105.0)
    assert not slow.tick(105.0)
    assert (one.load.weight, other.load.weight) == (0.55, 0.1)
    assert slow.tick(110.0)
    assert (one.load.weight, other.load.weight) == (1.0, 0.55)
    slow.drop(other)
    assert not slow.tick(200.0)
    assert other.load.weight == 0.55


def test_off() -> None:
    fleet = Fleet(Settings(replicas=("http://a",)))
    slow = SlowStart(0.0)
    slow.begin(fleet.members()[0], 1.0)
    assert fleet.loads[0].weight == 1.0
