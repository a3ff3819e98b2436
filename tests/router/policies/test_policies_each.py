"""What each policy is for."""

from __future__ import annotations

from collections import Counter

import pytest

from router.policies.cache_aware import (
    DECODE,
    FULL,
    LARGE,
    OWN,
    STALL,
    WAIT,
    CacheAware,
)
from router.policies.consistent_hash import BOUND, ConsistentHash
from router.policies.least_loaded import LeastLoaded
from router.policies.power_of_two import PowerOfTwo
from router.policies.round_robin import RoundRobin
from router.policies.session import Session
from router.types import Load, RoutingRequest

ALL = 0xFF


def ask(
    eligible: int = ALL,
    held: list[tuple[float, int]] | None = None,
    *,
    tokens: float = 4000.0,
    key: str = "",
    prefix: int = 0,
    now: float = 100.0,
    shared: dict[int, float] | None = None,
) -> RoutingRequest:
    return RoutingRequest(eligible, tokens, held or [], 200.0, key, prefix, now, shared or {})


def fleet(size: int = 8) -> list[Load]:
    return [Load() for _ in range(size)]


def names(size: int) -> dict[int, str]:
    return {slot: f"http://10.0.0.{slot}:8000" for slot in range(size)}


def test_round_robin_takes_turns_past_those_not_eligible() -> None:
    policy = RoundRobin()
    turns = [policy.choose(ask(0b1011), fleet()).slot for _ in range(5)]
    assert turns == [0, 1, 3, 0, 1]
    assert policy.choose(ask(0b10000101), fleet()).slot == 2


def test_least_loaded_counts_requests() -> None:
    books = fleet()
    for load in books:
        load.in_flight = 5
    books[6].in_flight = 4
    assert LeastLoaded().choose(ask(), books).slot == 6
    assert LeastLoaded().choose(ask(ALL ^ 1 << 6), books).slot != 6


def test_power_of_two_never_takes_the_most_loaded_of_more_than_one() -> None:
    books = fleet()
    books[3].in_flight = 9
    policy = PowerOfTwo(seed=1)
    seen = {policy.choose(ask(), books).slot for _ in range(300)}
    assert seen == set(range(8)) - {3}


class TestConsistentHash:
    def keys(self, policy: ConsistentHash, size: int) -> dict[str, int]:
        books = fleet(size)
        eligible = (1 << size) - 1
        return {
            key: policy.choose(ask(eligible, key=key), books).slot
            for key in (f"user-{number}" for number in range(2000))
        }

    def test_routers_agree_whatever_their_slots(self) -> None:
        here, there = ConsistentHash(), ConsistentHash()
        here.members(names(8))
        there.members({7 - slot: name for slot, name in names(8).items()})
        mine, theirs = self.keys(here, 8), self.keys(there, 8)
        assert all(theirs[key] == 7 - slot for key, slot in mine.items())

    def test_few_keys_move_when_one_comes(self) -> None:
        policy = ConsistentHash()
        policy.members(names(8))
        before = self.keys(policy, 8)
        policy.members(names(9))
        after = self.keys(policy, 9)
        moved = {key for key, slot in before.items() if after[key] != slot}
        assert all(after[key] == 8 for key in moved)
        assert 0.05 < len(moved) / len(before) < 0.2

    def test_the_prefix_stands_in_for_a_key(self) -> None:
        policy = ConsistentHash()
        policy.members(names(8))
        slots = {policy.choose(ask(prefix=1 << 60), fleet()).slot for _ in range(20)}
        assert len(slots) == 1

    def test_overflows_to_the_next_on_the_ring(self) -> None:
        policy, books = ConsistentHash(), fleet()
        policy.members(names(8))
        reasons = Counter[str]()
        for _ in range(400):
            choice = policy.choose(ask(key="one"), books)
            books[choice.slot].in_flight += 1
            reasons[choice.reason] += 1
        assert set(reasons) == {"hash", "overflow"}
        assert max(load.in_flight for load in books) <= BOUND * 400 / 8 + 1

    def test_says_who_forgot_members(self) -> None:
        with pytest.raises(RuntimeError, match="members"):
            ConsistentHash().choose(ask(key="x"), fleet())


class TestSession:
    def test_a_key_stays(self) -> None:
        policy, books = Session(seed=1), fleet()
        first = policy.choose(ask(key="s"), books)
        books[first.slot].in_flight = 500
        again = policy.choose(ask(key="s"), books)
        assert (again.slot, again.reason) == (first.slot, "session")

    def test_a_key_moves_when_its_replica_is_gone_and_stays_there(self) -> None:
        policy, books = Session(seed=1), fleet()
        first = policy.choose(ask(key="s"), books).slot
        second = policy.choose(ask(ALL ^ 1 << first, key="s"), books).slot
        assert second != first
        assert policy.choose(ask(key="s"), books).slot == second

    def test_another_replica_in_the_slot_is_not_the_session_s(self) -> None:
        policy, books = Session(seed=1), fleet()
        policy.members(names(8))
        slot = policy.choose(ask(key="s"), books).slot
        policy.members({**names(8), slot: "http://other"})
        books[slot].in_flight = 50
        assert policy.choose(ask(key="s"), books).slot != slot

    def test_first_placement_finds_what_another_router_placed(self) -> None:
        assert Session().choose(ask(held=[(3900.0, 1 << 5)], key="s"), fleet()).slot == 5

    def test_a_shared_prefix_overflows(self) -> None:
        policy, books = Session(seed=1), fleet()
        slot = policy.choose(ask(prefix=77), books).slot
        books[slot].in_flight = 40
        choice = policy.choose(ask(prefix=77), books)
        assert choice.reason == "overflow"
        assert choice.slot != slot

    def test_forgets_the_oldest(self) -> None:
        policy, books = Session(remembered=2, seed=1), fleet()
        slot = policy.choose(ask(key="a"), books).slot
        policy.choose(ask(key="b"), books)
        policy.choose(ask(key="c"), books)
        books[slot].in_flight = 99
        assert policy.choose(ask(key="a"), books).slot != slot


class TestCacheAware:
    def test_an_idle_holder_wins(self) -> None:
        choice = CacheAware().choose(ask(held=[(3000.0, 1 << 2), (1000.0, 0b11)]), fleet())
        assert (choice.slot, choice.reason) == (2, "cached")

    def test_reasons(self) -> None:
        books = fleet()
        books[2].queued_tokens = 200_000.0
        books[2].busy_until = 110.0
        policy = CacheAware()
        assert policy.choose(ask(held=[(3000.0, 1 << 2)]), books).reason == "load_shed"
        assert policy.choose(ask(ALL ^ 4, held=[(3000.0, 1 << 2)]), books).reason == "no_holder"
        assert policy.choose(ask(4, held=[(3000.0, 1 << 2)]), books).reason == "only_one"
        assert policy.choose(ask(), books).reason == "no_holder"

    def test_the_cost_is_the_formula(self) -> None:
        load = Load(
            queued_tokens=8000.0,
            busy_until=100.3,
            in_flight=3,
            context_tokens=9000.0,
            kv_tokens=5000.0,
            prefill_rate=10_000.0,
            step_seconds=0.02,
            step_request_seconds=1e-4,
            step_token_seconds=1e-7,
            kv_capacity=18_000.0,
        )
        elsewhere = [Load() for _ in range(3)]
        request = ask(1, [(1000.0, 0b1001)], shared={0: 2000.0})
        choice = CacheAware().choose(request, [load, *elsewhere])
        wait = 0.8 + WAIT * (0.3 - 0.2)
        own = (1 + OWN) * 0.3
        stall = STALL * 3**0.65 * 0.3
        decode = DECODE * (0.02 / 2 + 1e-4 * 3 + 1e-7 * (9000 + 4000))
        memory = FULL * 0.5**3 * (5000 + 4000) / 10_000
        assert choice.considered[0][2] == pytest.approx(wait + own + stall + decode + memory)

    def test_a_replica_that_stands_still_does_not_look_idle(self) -> None:
        """Its clock has run out, its queue has not."""
        books = [Load(queued_tokens=40_000.0, busy_until=50.0, in_flight=1), Load(in_flight=1)]
        assert CacheAware().choose(ask(3), books).slot == 1

    @pytest.mark.parametrize(("capacity", "share"), [(0.0, 0.0), (8000.0, 0.5), (2000.0, 1.0)])
    def test_memory_costs_more_the_fuller_it_is(self, capacity: float, share: float) -> None:
        """Up to where it is overfull; nothing where its size is not known."""
        load = Load(prefill_rate=10_000.0, kv_capacity=capacity)
        policy = CacheAware(own=0.0, decode=0.0)
        (considered,) = policy.choose(ask(1), [load]).considered
        assert considered[2] == pytest.approx(0.4 + FULL * share**3 * 0.4)

    @pytest.mark.parametrize("uncached", [500.0, LARGE, 20_000.0])
    def test_what_a_miss_costs_others_is_bounded(self, uncached: float) -> None:
        request = ask(1)
        request.tokens = uncached
        (considered,) = CacheAware(decode=0.0).choose(request, [Load()]).considered
        price = uncached + OWN * min(uncached, LARGE)
        assert considered[2] == pytest.approx(price / Load().prefill_rate)

    def test_so_a_large_shared_prompt_is_copied_when_its_holder_decodes_for_many(self) -> None:
        books = [Load(in_flight=1, prefill_rate=20_000.0) for _ in range(8)]
        books[0].in_flight, books[0].context_tokens = 40, 800_000.0
        request = ask(held=[(19_000.0, 1)])
        request.tokens = 20_000.0
        assert CacheAware(seed=1, large=1e9).choose(request, books).reason == "cached"
        assert CacheAware(seed=1).choose(request, books).reason == "load_shed"

    def test_a_wait_for_its_own_prefix_is_not_fled(self) -> None:
        """Elsewhere it would be computed as well; other work of the same size is fled."""
        books = [Load(prefill_rate=20_000.0) for _ in range(2)]
        books[0].queued_tokens, books[0].busy_until, books[0].in_flight = 4500.0, 100.225, 1
        mine = ask(0b11, [(3900.0, 0b01)], shared={0: 3900.0})
        others = ask(0b11, [(3900.0, 0b01)])
        assert CacheAware().choose(mine, books).reason == "cached"
        assert CacheAware().choose(others, books).reason == "load_shed"

    def test_books_that_are_below_zero_for_a_moment(self) -> None:
        """Another router's news of an end can come before its news of the beginning."""
        books = [Load(in_flight=-1), Load(in_flight=3)]
        assert CacheAware().choose(ask(3), books).slot == 0

    def test_a_slow_replica_is_left_for_its_answers(self) -> None:
        """Prefill is as fast everywhere; a step of one takes twice as long."""
        books = [Load(step_seconds=0.04), Load(step_seconds=0.02), Load(step_seconds=0.02)]
        assert {CacheAware(seed=1).choose(ask(0b111), books).slot for _ in range(9)} <= {1, 2}

    def test_fast_replicas_take_what_makes_all_answers_together_soonest(self) -> None:
        """Not so many that they are as slow as the slow ones: each request slows all others."""
        books = [
            Load(step_seconds=0.016, step_request_seconds=5e-4, step_token_seconds=0.0),
            Load(step_seconds=0.032, step_request_seconds=1e-3, step_token_seconds=0.0),
        ]

        def together(fast: int, slow: int) -> float:
            return fast * (0.016 + 5e-4 * fast) + slow * (0.032 + 1e-3 * slow)

        for _ in range(40):
            request = ask(0b11)
            request.tokens = 1.0
            books[CacheAware().choose(request, books).slot].in_flight += 1
        chosen = together(books[0].in_flight, books[1].in_flight)
        assert chosen < 1.005 * min(together(40 - slow, slow) for slow in range(41))

    def test_a_hot_prefix_copies_itself_as_load_needs(self) -> None:
        policy, books = CacheAware(seed=2), fleet()
        holders, copies = 1, []
        for _ in range(64):
            choice = policy.choose(ask(held=[(3500.0, holders)]), books)
            load = books[choice.slot]
            uncached = 500.0 if holders >> choice.slot & 1 else 4000.0
            holders |= 1 << choice.slot
            load.in_flight += 1
            load.queued_tokens += uncached
            load.busy_until = max(100.0, load.busy_until) + uncached / load.prefill_rate
            load.context_tokens += 4000.0
            load.kv_tokens += uncached
            copies.append(holders.bit_count())
        assert copies[0] == 1
        assert copies[2] < 4
        assert copies[-1] == 8

    def test_equal_costs_are_chosen_evenly(self) -> None:
        policy = CacheAware(seed=6)
        seen = Counter(
            policy.choose(ask(held=[(2000.0, 0b10110)]), fleet()).slot for _ in range(3000)
        )
        assert set(seen) == {1, 2, 4}
        assert max(seen.values()) < 1.15 * 1000

    def test_a_large_fleet_finds_the_only_holder(self) -> None:
        books = fleet(1000)
        choice = CacheAware().choose(ask((1 << 1000) - 1, [(3900.0, 1 << 777)]), books)
        assert (choice.slot, choice.reason) == (777, "cached")
        assert len(choice.considered) < 40
