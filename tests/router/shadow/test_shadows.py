from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import pytest

from bench.shadow import measure
from router.index import ByteIndex
from router.policies.round_robin import RoundRobin
from router.prompt.prompt import Prompt
from router.prompt.spans import SPANS
from router.scheduling.placer import Placement, Placer, index_weight
from router.shadow.shadow_policy import ShadowPolicy
from router.shadow.shadows import MAX_BACKLOG, MIN_REQUESTS, Shadows
from router.shadow.tally import SLICE_S, Rolling
from router.types import Chain, Choice, Load, Policy, RoutingRequest

TOKENS = 100_000


class Refuses:
    """A policy whose code fails."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        raise ZeroDivisionError("of its own")

    def members(self, names: Mapping[int, str]) -> None: ...


class World:
    """A live placer with round robin over three replicas, and shadows of it."""

    def __init__(self, *names: str) -> None:
        self.now = 1000.0
        self.due: list[Callable[[], None]] = []
        self.loads = [Load() for _ in range(3)]
        index = ByteIndex(SPANS)
        self.placer = Placer(index, RoundRobin(), self.loads, learn_speed=False)
        members = [SimpleNamespace(block_tokens=16) for _ in range(3)]
        self.fleet = SimpleNamespace(replicas=members, members=lambda: members)
        self.shadows = Shadows(
            self.fleet,  # type: ignore[arg-type]
            self.placer,
            "round_robin",
            names,
            price=36.0,
            clock=lambda: self.now,
            later=lambda _, call: self.due.append(call),
        )
        names_by_slot = {slot: f"r{slot}" for slot in range(3)}
        for policy in (self.placer.policy, *self.shadows.policies):
            policy.members(names_by_slot)
        for slot in range(3):
            index.add_replica(slot, index_weight(TOKENS))
            for shadow in self.shadows.all:
                shadow.add_replica(slot, index_weight(TOKENS))
        self.placer.listener = self.shadows

    def place(self, first: int = 1, eligible: int = 0b111) -> Placement:
        """A prompt of four blocks; first: what its hashes begin with."""
        chain = chain_of(first)
        prompt = Prompt(model="m", chain=chain, size=SPANS[4], stream=True)
        return self.placer.place(prompt, eligible, self.now)

    def ask(self, first: int = 1, cached: int = 0) -> None:
        """A request from its placement to its end."""
        placement = self.place(first)
        self.now += 1.0
        placement.finished(self.now, 256, 10, cached)
        self.work()

    def work(self) -> None:
        while self.due:
            self.due.pop()()


def chain_of(first: int) -> Chain:
    return array("Q", [first * 100 + position for position in range(4)])


def by_name(world: World, name: str) -> ShadowPolicy:
    return next(shadow for shadow in world.shadows.all if shadow.name == name)


def test_a_shadow_that_stays_where_the_prefix_is_finds_it() -> None:
    world = World("consistent_hash")
    for _ in range(6):
        world.ask(cached=0)
    live, other = world.shadows.report().policies
    assert (live.policy, live.live) == ("round_robin", True)
    assert other.policy == "consistent_hash"
    # Round robin meets an empty cache three times, the hash once; whole blocks less the last token.
    assert other.requests == live.requests == 6
    assert live.predicted_hit_rate == pytest.approx(3 * 240 / (6 * 256))
    assert other.predicted_hit_rate == pytest.approx(5 * 240 / (6 * 256))
    assert other.delivered_hit_rate == 0.0
    assert live.hottest_ratio == pytest.approx((256 + 16) * 3 / (3 * 256 + 3 * 16))
    assert other.hottest_ratio == pytest.approx(3.0)


def test_what_the_answer_before_left_in_the_cache_counts_for_who_holds_as_much() -> None:
    world = World("consistent_hash")
    world.ask()
    # The live replica holds nothing of it: what it delivers says nothing of the shadow's.
    world.ask(cached=250)
    live, other = world.shadows.all
    assert live.rolling.total.predicted == 0.0
    assert other.rolling.total.predicted == 240.0
    world.ask()
    world.ask(cached=250)  # the first replica again: both hold the prompt
    assert live.rolling.total.predicted == 250.0
    assert other.rolling.total.predicted == 240.0 + 240.0 + 250.0


def test_savings_in_tokens_seconds_and_money() -> None:
    world = World("consistent_hash")
    for load in world.loads:
        load.prefill_rate = 100.0
    world.ask(cached=0)
    world.ask(cached=200)
    report = world.shadows.report()
    assert report.by_cache.tokens == 200
    assert report.by_cache.replica_seconds == pytest.approx(2.0)
    assert report.by_cache.money == pytest.approx(0.02)
    live, other = report.policies
    assert live.saved.tokens == 200
    assert other.saved.tokens == 200 - 240
    assert other.saved.replica_seconds == pytest.approx(-0.4)


def test_a_failed_attempt_leaves_nothing_behind() -> None:
    world = World("least_loaded")
    placement = world.place()
    world.work()
    shadow = by_name(world, "least_loaded")
    assert sum(load.in_flight for load in shadow._loads) == 1
    placement.failed(world.now)
    world.work()
    assert sum(load.in_flight for load in shadow._loads) == 0
    assert sum(load.queued_tokens for load in shadow._loads) == 0
    assert not world.shadows._placed
    assert shadow.rolling.total.requests == 0


def test_a_policy_that_fails_is_off_and_harms_nobody() -> None:
    world = World(f"{__name__}:Refuses", "least_loaded")
    world.ask()
    world.ask()
    _, broken, other = world.shadows.report().policies
    assert broken.fault == "ZeroDivisionError: of its own"
    assert broken.requests == 0
    assert broken.predicted_hit_rate is None
    assert other.requests == 2


def test_a_replica_that_left_is_not_chosen_and_its_requests_end() -> None:
    world = World("consistent_hash")
    shadow = by_name(world, "consistent_hash")
    placement = world.place()
    world.work()
    slot = next(slot for slot, load in enumerate(shadow._loads) if load.in_flight)
    for each in world.shadows.all:
        each.remove_replica(slot)
    world.now += 1.0
    placement.finished(world.now, 256, 10, 0)
    again = world.place(eligible=1 << slot)
    world.work()
    assert shadow.rolling.total.requests == 1
    again.finished(world.now, 256, 10, 0)
    world.work()
    assert shadow.rolling.total.requests == 1
    for each in world.shadows.all:
        each.add_replica(slot, index_weight(TOKENS))
    world.ask()
    assert shadow.rolling.total.requests == 2
    assert not any(load.in_flight for load in shadow._loads)


def test_what_comes_too_fast_is_left_out_and_counted() -> None:
    world = World()
    placements = [world.place() for _ in range(MAX_BACKLOG + 5)]
    assert world.shadows.left_out == 5
    for placement in placements:
        placement.finished(world.now, 256, 1, 0)
    world.work()
    assert world.shadows.control.rolling.total.requests == MAX_BACKLOG
    assert not world.shadows._placed


def test_trust_needs_requests_and_agreement() -> None:
    world = World()
    for _ in range(MIN_REQUESTS):
        assert not world.shadows.report().trusted
        world.ask(cached=240)
    # The first three were not held by anybody, and yet delivered: other clients of the engines.
    report = world.shadows.report()
    assert not report.trusted
    assert "-2.8 points" in report.why
    for _ in range(MIN_REQUESTS):
        world.ask(cached=240)
    assert world.shadows.report().trusted
    assert world.shadows.report().why == ""


def test_the_last_hour_forgets() -> None:
    rolling = Rolling()
    rolling.slice(0.0).requests += 1
    rolling.slice(SLICE_S * 5).requests += 2
    assert rolling.last_hour(SLICE_S * 5).requests == 3
    assert rolling.last_hour(SLICE_S * 14).requests == 2
    assert rolling.last_hour(SLICE_S * 100).requests == 0


def test_shadows_come_true_in_virtual_time() -> None:
    rows = {row.policy: row for row in measure("chat", 40.0, 600, seed=3)}
    assert rows["cache_aware"].predicted == pytest.approx(rows["cache_aware"].real, abs=2.0)
    assert rows["round_robin"].predicted == pytest.approx(rows["round_robin"].real, abs=4.0)
    assert rows["session"].predicted == pytest.approx(rows["session"].real, abs=4.0)
    assert rows["cache_aware"].predicted - rows["round_robin"].predicted > 20.0


def test_a_shadow_has_the_protocol_of_a_policy() -> None:
    policies: list[Policy] = World("least_loaded").shadows.policies
    assert len(policies) == 2
