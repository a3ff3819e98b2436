from __future__ import annotations

import pytest

from router.policies.savings import FORGET_SECONDS, LIMIT, Savings


def test_what_was_saved_fades() -> None:
    savings = Savings()
    savings.put(7, 3.0, 100.0)
    assert savings.of(7, 100.0) == 3.0
    assert savings.of(7, 100.0 + FORGET_SECONDS) == pytest.approx(3.0 / 2.71828, rel=1e-4)
    assert savings.of(7, 99.0) == 3.0, "news from before: not more than was saved"
    assert savings.of(8, 100.0) == 0.0


def test_a_copy_spends_it() -> None:
    savings = Savings()
    savings.put(7, 3.0, 100.0)
    savings.spend(7)
    savings.spend(7)
    assert savings.of(7, 100.0) == 0.0


def test_forgets_what_went_longest_without() -> None:
    savings = Savings()
    for prefix in range(LIMIT):
        savings.put(prefix, 1.0, 0.0)
    savings.put(0, 2.0, 0.0)
    savings.put(LIMIT, 1.0, 0.0)
    assert len(savings) == LIMIT
    assert (savings.of(0, 0.0), savings.of(1, 0.0), savings.of(LIMIT, 0.0)) == (2.0, 0.0, 1.0)
