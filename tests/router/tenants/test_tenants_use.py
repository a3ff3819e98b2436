"""Counting use under a bounded number of names."""

from __future__ import annotations

from router.tenants.use import MAX_NAMED, IsolationCost, TenantUse


def test_those_that_use_most_are_named_and_the_rest_is_other() -> None:
    use = TenantUse()
    for number in range(MAX_NAMED + 50):
        use.saw(f"t{number}", 10).requests += 1
    assert len(use.named) == MAX_NAMED
    assert use.other.requests == 50
    for _ in range(10):
        use.saw("t120", 100_000).requests += 1
    use.look()
    assert "t120" in use.named
    assert len(use.named) == MAX_NAMED
    use.saw("t120", 1).requests += 1
    assert use.named["t120"].requests == 1
    assert use.other.requests == 60
    assert len(use.rows()) == MAX_NAMED + 1


def test_names_do_not_change_to_and_fro() -> None:
    use = TenantUse()
    for number in range(MAX_NAMED + 5):
        use.saw(f"t{number}", 100)
    before = set(use.named)
    use.look()
    assert set(use.named) == before


def test_isolation_costs_what_others_have_had() -> None:
    cost = IsolationCost(1000)
    common, one, other = list(range(8)), list(range(100, 104)), list(range(200, 204))
    assert cost.saw(common + one, 10) == 0
    assert cost.saw(common + other, 20) == 8
    assert cost.saw(common + one, 10) == 8
    assert cost.saw(list(range(300, 308)), 10) == 0


def test_what_isolation_costs_is_bounded() -> None:
    cost = IsolationCost(1000)
    for number in range(5000):
        cost.saw([0, 0, 0, number], 1)
    assert len(cost._new) + len(cost._old) <= 1002


def test_a_tenant_that_is_called_as_the_rest_is_counts_with_it() -> None:
    use = TenantUse()
    for name in ("other", *(f"t{number}" for number in range(MAX_NAMED + 1))):
        use.saw(name, 10).requests += 1
    use.look()
    labels = [label for label, _ in use.rows()]
    assert labels.count("other") == 1
    assert use.other.requests == 2
