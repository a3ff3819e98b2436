"""Where LoRA adapters are loaded, and what that does to where requests go."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import prompt_of

from router.index import ByteIndex
from router.policies import load_policy
from router.scheduling.adapters import (
    LOAD_SECONDS_GUESS,
    MOST_LOADED,
    MOST_REPORTED,
    Adapters,
)
from router.scheduling.peer_request import PeerRequest
from router.scheduling.placer import Placement, Placer
from router.types import NO_CHAIN, Load

BASE = {"a": "m", "b": "m", "c": "m"}
ALL = 0b11


class World:
    """Two replicas, idle, that serve three adapters."""

    def __init__(self, capacity: int = 2, replicas: int = 2) -> None:
        self.size = 400
        self.adapters = Adapters(BASE)
        self.loads = [Load() for _ in range(replicas)]
        index = ByteIndex(range(0, 25_600, 256))
        for slot in range(replicas):
            index.add_replica(slot, 10**6)
            self.adapters.metrics_told(slot, capacity, ())
        policy = load_policy("cache_aware", seed=1)
        self.placer = Placer(index, policy, self.loads, adapters=self.adapters)

    def place(self, model: str, now: float, eligible: int = ALL) -> Placement:
        prompt = prompt_of(NO_CHAIN, self.size, model)
        return self.placer.place(prompt, eligible, now)

    def serve(self, model: str, now: float, eligible: int = ALL) -> Placement:
        placement = self.place(model, now, eligible)
        placement.first_token(now + 0.1)
        placement.finished(now + 0.2)
        return placement


def test_requests_go_where_their_adapter_is() -> None:
    world = World()
    first = {name: world.serve(name, at) for at, name in enumerate("abc", 1)}
    assert all(placement.loads_adapter for placement in first.values())
    for turn in range(10):
        for name, placement in first.items():
            again = world.serve(name, 10.0 + turn)
            assert (again.slot, again.loads_adapter) == (placement.slot, False)


def test_requests_without_one_are_placed_as_if_there_were_none() -> None:
    world = World()
    world.serve("a", 1.0, 0b01)
    placement = world.serve("m", 2.0)
    assert placement.adapter is None
    costs = {cost for _, _, cost, _, _ in placement.considered}
    assert len(costs) == 1


def test_the_least_recently_used_one_makes_room_but_none_with_requests() -> None:
    world = World(capacity=2)
    running = world.place("a", 1.0, 0b01)
    world.serve("b", 2.0, 0b01)
    world.serve("c", 3.0, 0b01)
    assert world.adapters.loaded(0) == ["c", "a"]
    running.finished(4.0)
    world.serve("b", 5.0, 0b01)
    assert world.adapters.loaded(0) == ["b", "c"]


def test_loading_is_charged_until_the_first_token() -> None:
    world = World()
    placement = world.place("a", 1.0)
    load = placement.load
    plain = placement.uncached / load.prefill_rate
    assert load.busy_until == pytest.approx(1.0 + plain + LOAD_SECONDS_GUESS)
    placement.first_token(1.5)
    assert load.busy_until == 1.5
    placement.failed(2.0)
    assert (load.in_flight, load.queued_tokens) == (0, 0.0)
    assert world.adapters.with_requests(placement.slot) == []


def test_where_every_place_is_taken_a_request_has_to_wait() -> None:
    """The other replica would have to load it as well, but can."""
    world = World(capacity=1)
    running = world.place("a", 1.0, 0b01)
    placement = world.place("b", 2.0)
    assert placement.adapter is not None
    assert (placement.adapter.cold, placement.adapter.blocked) == (0b11, 0b01)
    assert placement.slot == 1
    # Not for those of the adapter that has it.
    again = world.place("a", 3.0)
    assert again.adapter is not None
    assert again.adapter.blocked == 0b10
    for each in (running, placement, again):
        each.finished(4.0)
    last = world.place("c", 5.0)
    assert last.adapter is not None
    assert last.adapter.blocked == 0


def test_a_free_place_is_preferred() -> None:
    world = World(capacity=1)
    world.serve("a", 1.0, 0b01)
    assert world.place("b", 2.0).slot == 1


def test_what_loading_takes_is_learned_from_first_tokens() -> None:
    world = World(capacity=1)
    world.size = 8000  # long enough to tell a prefill's speed
    for turn in range(40):
        at = 10.0 * turn
        placement = world.place("ab"[turn % 2], at, 0b01)
        assert placement.loads_adapter
        placement.first_token(at + 2.0 + placement.uncached / placement.load.prefill_rate)
        placement.finished(at + 3.0, 2000, 1, 0)
    assert world.adapters.load_seconds == pytest.approx(2.0, rel=0.05)
    # It was not taken for the replica's speed.
    assert world.loads[0].prefill_rate == Load().prefill_rate


def test_one_that_waited_for_others_teaches_nothing() -> None:
    world = World()
    world.place("a", 1.0, 0b01)
    behind = world.place("b", 1.1, 0b01)
    behind.first_token(30.0)
    assert world.adapters.samples == 0


def test_metrics_tell_of_what_others_sent() -> None:
    world = World(capacity=2)
    world.adapters.metrics_told(1, 2, ("a", "b"))
    assert world.adapters.with_requests(1) == ["a", "b"]
    need = world.adapters.need("c", ALL)
    assert need is not None
    assert need.blocked == 0b10
    placement = world.serve("a", 1.0)
    assert (placement.slot, placement.loads_adapter) == (1, False)
    # They stay loaded when their requests are over.
    world.adapters.metrics_told(1, 2, ())
    assert sorted(world.adapters.loaded(1)) == ["a", "b"]
    need = world.adapters.need("c", ALL)
    assert need is not None
    assert need.blocked == 0


def test_models_tell_what_was_loaded_and_unloaded() -> None:
    world = World(capacity=2)
    world.adapters.models_told(0, ["a", "b", "c"])
    assert world.adapters.loaded(0) == ["c", "b"]
    world.adapters.models_told(0, ["a", "b"])
    assert world.adapters.loaded(0) == ["b"]
    world.adapters.forget(0)
    assert world.adapters.loaded(0) == []
    assert world.adapters.warm("b") == 0


def test_in_a_large_fleet_one_that_has_it_is_found() -> None:
    world = World(capacity=1, replicas=200)
    everyone = (1 << 200) - 1
    world.serve("a", 1.0, 1 << 123)
    assert {world.serve("a", 10.0 + turn, everyone).slot for turn in range(20)} == {123}


def test_where_other_routers_sent_the_same_prompt_the_adapter_is_loaded() -> None:
    world = World()
    chain = array("Q", range(1, 9))
    prompt = prompt_of(chain, 8 * 256, "a")
    request = PeerRequest(1, 8 * 256, 512.0, 512.0, chain, 8)
    world.placer.apply_peer_routed(request, 1.0)
    world.placer.apply_peer_finished(request, 2.0)
    placement = world.placer.place(prompt, ALL, 3.0)
    assert (placement.slot, placement.loads_adapter) == (1, False)


@pytest.mark.parametrize("capacity", [0, 8])
def test_an_engine_that_names_thousands_of_adapters_fills_no_memory(capacity: int) -> None:
    adapters = Adapters(BASE)
    for reading in range(20):
        adapters.metrics_told(0, capacity, [f"{reading}-{number}" for number in range(5000)])
        assert len(adapters.with_requests(0)) == MOST_REPORTED
    assert len(adapters.loaded(0)) <= MOST_LOADED
    adapters.models_told(0, [f"listed-{number}" for number in range(2 * MOST_LOADED)])
    assert len(adapters.loaded(0)) <= MOST_LOADED


NAMES = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("sent"), st.integers(0, 1), st.sampled_from(NAMES)),
        st.tuples(st.just("ended"), st.integers(0, 20)),
        st.tuples(st.just("emptied"), st.integers(0, 1)),
        st.tuples(st.just("left"), st.integers(0, 1)),
        st.tuples(
            st.just("metrics"), st.integers(0, 1), st.integers(0, 3),
            st.lists(st.sampled_from(NAMES), unique=True),
        ),
        st.tuples(
            st.just("models"), st.integers(0, 1), st.lists(st.sampled_from(NAMES), unique=True)
        ),
    ),
    max_size=40,
)  # fmt: skip


class Naive:
    """One replica as lists: what is loaded, the least recently used first, and every request."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.requests: list[str] = []
        self.reported: set[str] = set()
        self.listed: list[str] = []
        self.room = 0

    @property
    def busy(self) -> set[str]:
        return self.reported | set(self.requests)

    def evict(self) -> None:
        while self.room and len(self.loaded) > self.room:
            free = [each for each in self.loaded if each not in self.busy]
            if not free:
                return
            self.loaded.remove(free[0])

    def use(self, model: str) -> None:
        if model in self.loaded:
            self.loaded.remove(model)
            self.loaded.append(model)
        else:
            self.loaded.append(model)
            self.evict()

    def sent(self, model: str) -> None:
        self.requests.append(model)
        self.reported.discard(model)
        self.use(model)

    def metrics(self, room: int, told: list[str]) -> None:
        self.room = room
        self.reported = set(told) - set(self.requests)
        for model in told:
            self.use(model)
        self.evict()

    def models(self, listed: list[str]) -> None:
        before, self.listed = self.listed, listed
        for model in listed:
            if model not in before:
                self.use(model)
        self.loaded = [each for each in self.loaded if each in listed or each not in before]


@settings(max_examples=300)
@given(STEPS)
def test_the_books_equal_a_naive_model(steps: list[Any]) -> None:
    adapters = Adapters(BASE)
    replicas = [Naive(), Naive()]
    open_requests: list[tuple[int, Naive, str]] = []
    for what, *rest in steps:
        if what == "sent":
            slot, model = rest
            adapters.sent(slot, model)
            replicas[slot].sent(model)
            open_requests.append((slot, replicas[slot], model))
        elif what == "ended":
            if open_requests:
                slot, naive, model = open_requests.pop(rest[0] % len(open_requests))
                naive.requests.remove(model)
                if naive is replicas[slot]:  # else it left, and its books with it
                    adapters.ended(slot, model)
        elif what == "emptied":
            slot = rest[0]
            adapters.emptied(slot)
            before, replicas[slot].requests = replicas[slot].requests, []
            fresh = Naive()
            fresh.requests = before
            open_requests = [
                (at, fresh if naive is replicas[slot] else naive, model)
                for at, naive, model in open_requests
            ]
            replicas[slot] = fresh
        elif what == "left":
            adapters.forget(rest[0])
            replicas[rest[0]] = Naive()
        elif what == "metrics":
            adapters.metrics_told(*rest)
            replicas[rest[0]].metrics(*rest[1:])
        else:
            adapters.models_told(*rest)
            replicas[rest[0]].models(rest[1])
        for slot, naive in enumerate(replicas):
            assert adapters.loaded(slot) == naive.loaded[::-1]
            assert adapters.with_requests(slot) == sorted(naive.busy)
        for model in NAMES:
            need = adapters.need(model, ALL)
            assert need is not None
            for slot, naive in enumerate(replicas):
                taken = 0 < naive.room <= len(naive.busy) and model not in naive.busy
                full = 0 < naive.room <= len(naive.loaded) and model not in naive.loaded
                assert need.cold >> slot & 1 == (model not in naive.loaded)
                assert need.blocked >> slot & 1 == taken
                assert need.full >> slot & 1 == full
    for slot, naive, model in open_requests:
        if naive is replicas[slot]:
            adapters.ended(slot, model)
    adapters.metrics_told(0, 0, ())
    adapters.metrics_told(1, 0, ())
    assert adapters.with_requests(0) == adapters.with_requests(1) == []


def test_requests_from_before_a_restart_do_not_end_those_after_it() -> None:
    world = World(capacity=1)
    before = world.place("a", 1.0, 0b01)
    world.adapters.emptied(0)
    world.adapters.metrics_told(0, 1, ())
    assert world.adapters.loaded(0) == []
    later = world.place("a", 2.0, 0b01)
    assert later.loads_adapter
    before.failed(3.0)
    assert world.adapters.with_requests(0) == ["a"]
    later.finished(4.0)
    assert world.adapters.with_requests(0) == []
