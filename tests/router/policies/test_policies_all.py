"""What holds for every policy."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policies import BUILT_IN, PolicyError, load_policy
from router.types import Load, Policy, RoutingRequest

SEEDED = sorted(set(BUILT_IN) - {"round_robin"})


def fleet(size: int) -> list[Load]:
    return [Load() for _ in range(size)]


def ready(name: str, size: int, **options: object) -> Policy:
    policy = load_policy(name, **options)
    policy.members({slot: f"replica-{slot}" for slot in range(size)})
    return policy


def ask(
    eligible: int, held: list[tuple[float, int]] | None = None, **fields: object
) -> RoutingRequest:
    values = {"tokens": 1000.0, "output_tokens": 100.0, "key": "", "prefix": 0, "now": 10.0}
    values.update(fields)
    return RoutingRequest(eligible=eligible, held=held or [], **values)


loads = st.builds(
    Load,
    queued_tokens=st.integers(0, 100_000).map(float),
    busy_until=st.floats(0, 1000),
    in_flight=st.integers(0, 300),
    context_tokens=st.integers(0, 10**6).map(float),
    kv_tokens=st.integers(0, 10**6).map(float),
    prefill_rate=st.floats(100, 1e6),
    weight=st.floats(0.01, 1.0),
    cache_used=st.floats(0, 1e6),
    cache_tokens=st.sampled_from([0.0, 1000.0, 5e5]),
    kv_capacity=st.sampled_from([0.0, 1000.0, 5e5]),
)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(BUILT_IN)), size=st.integers(1, 90))
def test_chooses_only_eligible_slots(data: st.DataObject, name: str, size: int) -> None:
    books = data.draw(st.lists(loads, min_size=size, max_size=size))
    policy = ready(name, size, **({} if name == "round_robin" else {"seed": 1}))
    for _ in range(6):
        eligible = data.draw(st.integers(1, (1 << size) - 1))
        left = (1 << size) - 1
        held = []
        for depth in data.draw(st.lists(st.floats(1, 5000), max_size=6, unique=True)):
            mask = data.draw(st.integers(0, (1 << size) - 1)) & left
            left &= ~mask
            if mask:
                held.append((depth, mask))
        held.sort(reverse=True)
        choice = policy.choose(
            ask(
                eligible,
                held,
                tokens=data.draw(st.floats(1, 10_000)),
                key=data.draw(st.sampled_from(["", "a", "b"])),
                prefix=data.draw(st.sampled_from([0, 1, 2**64 - 1])),
            ),
            books,
        )
        assert eligible >> choice.slot & 1
        assert choice.reason
        if choice.considered:
            costs = {slot: cost for slot, _, cost, _, _ in choice.considered}
            assert len(costs) == len(choice.considered)
            assert all(eligible >> slot & 1 for slot in costs)
            assert costs[choice.slot] == min(costs.values())


@pytest.mark.parametrize("name", SEEDED)
def test_same_seed_same_choices(name: str) -> None:
    def run(seed: int) -> list[int]:
        policy, books = ready(name, 40, seed=seed), fleet(40)
        chosen = []
        for turn in range(200):
            slot = policy.choose(ask((1 << 40) - 1), books).slot
            books[slot].in_flight += turn % 3
            chosen.append(slot)
        return chosen

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("size", [8, 100])
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_unrelated_prompts_spread_evenly_over_an_idle_fleet(name: str, size: int) -> None:
    policy, books = ready(name, size, **({} if name == "round_robin" else {"seed": 3})), fleet(size)
    times = 200 * size
    seen = Counter(
        policy.choose(ask((1 << size) - 1, prefix=hash((turn, 0.5)) & (2**64 - 1)), books).slot
        for turn in range(times)
    )
    assert len(seen) == size
    assert max(seen.values()) < 200 * 1.6
    assert min(seen.values()) > 200 * 0.4


@pytest.mark.parametrize("name", ["cache_aware", "least_loaded", "session"])
@pytest.mark.parametrize("size", [8, 200])
def test_a_burst_does_not_herd(name: str, size: int) -> None:
    policy, books = ready(name, size, seed=4), fleet(size)
    for _ in range(4 * size):
        load = books[policy.choose(ask((1 << size) - 1), books).slot]
        load.in_flight += 1
        load.queued_tokens += 1000.0
        load.busy_until = max(10.0, load.busy_until) + 0.05
        load.context_tokens += 1000.0
        load.kv_tokens += 1000.0
    counts = [load.in_flight for load in books]
    assert min(counts) >= 2
    assert max(counts) <= 6


@pytest.mark.parametrize("name", ["least_loaded", "power_of_two", "cache_aware"])
def test_a_replica_that_starts_slowly_takes_less(name: str) -> None:
    policy, books = ready(name, 4, seed=5), fleet(4)
    books[2].weight = 0.25
    for _ in range(260):
        load = books[policy.choose(ask(15), books).slot]
        load.in_flight += 1
        load.queued_tokens += 1000.0
        load.busy_until = max(10.0, load.busy_until) + 0.05
        load.context_tokens += 1000.0
        load.kv_tokens += 1000.0
    others = sum(load.in_flight for load in books) - books[2].in_flight
    assert books[2].in_flight < 0.62 * others / 3
    assert books[2].in_flight > 0


class NoChoose:
    def members(self, names: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cash_aware", {}, "use one of cache_aware, consistent_hash"),
        ("no_such_module_at_all:Policy", {}, "cannot import no_such_module_at_all"),
        ("router.types:Nothing", {}, "router.types has no Nothing"),
        (":Policy", {}, "is not an import path"),
        ("router.scheduling.placer:PREFIX_BLOCKS", {}, "is not a class"),
        (f"{__name__}:NoChoose", {}, "has no choose method"),
        ("round_robin", {"speed": 3}, "docs/design/policies.md"),
        ("consistent_hash", {"bound": 0.5}, "bound must be at least 1"),
    ],
)
def test_what_cannot_be_loaded_says_why(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(PolicyError, match="policy '") as error:
        load_policy(name, **options)
    assert words in str(error.value)
