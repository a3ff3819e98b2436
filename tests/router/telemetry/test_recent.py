"""Hit rates over a window."""

from __future__ import annotations

from router.telemetry.ledger import Ledger
from router.telemetry.recent import SAMPLE_INTERVAL_S, Recent


def test_only_the_window_counts() -> None:
    recent = Recent(seconds=2 * SAMPLE_INTERVAL_S)
    ledger = Ledger(prompt=1000, delivered=0)
    recent.sample({"a": ledger})
    ledger = Ledger(prompt=2000, delivered=900)
    assert recent.hit_rate("a", ledger) == 0.9
    for _ in range(3):  # the first sample is older than the window now
        recent.sample({"a": ledger})
    assert recent.hit_rate("a", ledger) is None
    assert recent.hit_rate("a", Ledger(prompt=2100, delivered=950)) == 0.5


def test_a_replica_that_came_inside_the_window_counts_from_nothing() -> None:
    recent = Recent()
    assert recent.hit_rate("a", Ledger(prompt=10, delivered=5)) == 0.5
    recent.sample({})
    assert recent.hit_rate("a", Ledger(prompt=10, delivered=5)) == 0.5
    assert recent.hit_rate("a", None) is None
