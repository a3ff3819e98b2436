from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import prompt_of

from router.index import ByteIndex
from router.policies import load_policy
from router.prompt import NO_PROMPT
from router.scheduling.peer_request import PeerRequest
from router.scheduling.placer import MAX_MODELS, Placement, Placer
from router.types import NO_CHAIN, Chain, Choice, Load, RoutingRequest

BLOCK = 256


def placer(
    size: int = 4, policy: str = "cache_aware", capacity: int = 10**6, **options: object
) -> Placer:
    index = ByteIndex(range(0, 1000 * BLOCK, BLOCK))
    for slot in range(size):
        index.add_replica(slot, capacity)
    made = load_policy(policy, **options)
    made.members({slot: str(slot) for slot in range(size)})
    return Placer(index, made, [Load() for _ in range(size)])


def chain(name: int, blocks: int) -> Chain:
    return array("Q", [name * 10_000 + block for block in range(blocks)])


def heard(slot: int, chain: Chain, uncached: float) -> PeerRequest:
    """What another router tells of a prompt of which its replica holds nothing."""
    return PeerRequest(slot, len(chain) * BLOCK, uncached, uncached, chain, len(chain))


def idle(load: Load) -> bool:
    return (load.queued_tokens, load.in_flight, load.context_tokens, load.kv_tokens) == (
        0.0,
        0,
        0.0,
        0.0,
    )


def test_all_prompts_of_a_body_count() -> None:
    place = placer()
    chains = [chain(n, 40) for n in range(1, 5)]
    size = 4 * 40 * BLOCK
    first = place.place(prompt_of(chains[0], size, more=chains[1:]), 15, 1.0)
    first.finished(2.0)
    again = place.place(prompt_of(chains[0], size, more=chains[1:]), 15, 3.0)
    assert again.slot == first.slot
    assert again.held_tokens == again.available_tokens == size / 4
    again.finished(4.0)
    # The first prompt is new: what is held of the others is enough to go there.
    other = place.place(prompt_of(chain(9, 40), size, more=chains[1:]), 15, 5.0)
    assert (other.slot, other.held_tokens) == (first.slot, size / 4 * 3 / 4)


def test_the_next_turn_goes_where_the_last_one_went() -> None:
    place = placer()
    first = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 15, 1.0)
    assert (first.reason, first.held_tokens, first.available_tokens) == ("no_holder", 0.0, 0.0)
    first.first_token(1.2)
    first.finished(2.0)
    again = place.place(prompt_of(chain(1, 44), 44 * BLOCK + 10), 15, 3.0)
    assert (again.slot, again.reason) == (first.slot, "cached")
    assert again.held_tokens == again.available_tokens == 40 * BLOCK / 4
    assert again.uncached == pytest.approx(4 * BLOCK / 4, abs=4)


def test_what_was_available_elsewhere_is_told() -> None:
    place = placer()
    first = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 15, 1.0)
    for other in range(4):
        if other != first.slot:
            place.index.record(other, chain(1, 10), 1.0)
    place.loads[first.slot].queued_tokens += 1e6
    place.loads[first.slot].busy_until = 90.0
    shed = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 15, 1.1)
    assert shed.reason == "load_shed"
    assert shed.held_tokens == 10 * BLOCK / 4
    assert shed.available_tokens == 40 * BLOCK / 4


def test_a_retry_leaves_no_trace_in_the_books_of_the_first() -> None:
    place = placer()
    first = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 15, 1.0)
    first.failed(1.1)
    first.failed(1.1)
    assert idle(first.load)
    second = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 15 & ~(1 << first.slot), 1.1)
    assert second.slot != first.slot
    with pytest.raises(ValueError, match="eligible"):
        place.place(prompt_of(chain(1, 40), 40 * BLOCK), 0, 1.1)


def test_finished_twice_is_booked_once() -> None:
    place = placer()
    one = place.place(prompt_of(chain(1, 4), 4 * BLOCK), 1, 1.0)
    two = place.place(prompt_of(chain(2, 4), 4 * BLOCK), 1, 1.0)
    one.finished(2.0)
    one.finished(2.0)
    assert two.load.in_flight == 1
    two.finished(2.0)
    assert idle(two.load)


def test_a_prompt_without_blocks_is_placed_and_charged() -> None:
    place = placer()
    placed = place.place(prompt_of(NO_CHAIN, 100), 15, 1.0)
    assert placed.load.in_flight == 1
    assert placed.tokens == 26.0


def test_an_answer_that_is_not_a_stream_is_believed_prefilled_in_time() -> None:
    place = placer()
    placed = place.place(prompt_of(chain(1, 400), 400 * BLOCK, stream=False), 1, 1.0)
    placed.first_token(9.0)
    assert placed.load.queued_tokens == placed.uncached
    place.place(prompt_of(chain(2, 4), 4 * BLOCK), 2, 1.5)
    assert placed.load.queued_tokens == placed.uncached
    place.place(
        prompt_of(chain(2, 4), 4 * BLOCK),
        2,
        1.0 + placed.uncached / placed.load.prefill_rate + 0.01,
    )
    assert placed.load.queued_tokens == 0.0
    assert placed.load.in_flight == 1
    placed.finished(9.0, 25_600, 100)
    assert idle(placed.load)
    assert placed.load.prefill_rate == Load().prefill_rate


def test_learns_what_usage_tells() -> None:
    place = placer()
    for turn in range(300):
        placed = place.place(prompt_of(chain(turn, 20), 20 * BLOCK), 1, float(turn))
        placed.first_token(turn + 0.25)
        placed.finished(turn + 0.5, 2000, 40, 0)
    facts = place.models["m"]
    assert facts.bytes_per_token == pytest.approx(20 * BLOCK / 2000, rel=0.02)
    assert facts.output_tokens == pytest.approx(40, rel=0.1)
    assert place.loads[0].prefill_rate == pytest.approx(8000.0, rel=0.2)


def test_speed_is_learned_from_requests_that_did_not_wait() -> None:
    place = placer()
    for turn in range(40):
        ahead = place.place(prompt_of(chain(2 * turn, 200), 200 * BLOCK), 1, 10.0 * turn)
        behind = place.place(prompt_of(chain(2 * turn + 1, 20), 20 * BLOCK), 1, 10.0 * turn)
        ahead.first_token(10.0 * turn + 1.28)
        behind.first_token(10.0 * turn + 1.4)
        behind.finished(10.0 * turn + 2)
        ahead.finished(10.0 * turn + 2)
    assert place.loads[0].prefill_rate == pytest.approx(10_000.0, rel=0.2)


def test_speed_is_not_learned_from_requests_behind_another_router_s() -> None:
    place = placer()
    for turn in range(40):
        mine = place.place(prompt_of(chain(turn, 20), 20 * BLOCK), 1, 10.0 * turn)
        late = 10.0 * turn + 0.5
        told = heard(0, chain(turn + 500, 20), 1280.0)
        place.apply_peer_routed(told, late)
        mine.first_token(10.0 * turn + 1.0)
        place.apply_peer_first_token(told, 10.0 * turn + 1.0)
        mine.finished(10.0 * turn + 2)
        place.apply_peer_finished(told, 10.0 * turn + 2)
    assert place.loads[0].prefill_rate == Load().prefill_rate


def test_speed_is_learned_though_another_router_s_request_comes_after_the_first_token() -> None:
    place = placer()
    for turn in range(40):
        now = 10.0 * turn
        mine = place.place(prompt_of(chain(turn, 20), 20 * BLOCK), 1, now)
        mine.first_token(now + 0.5)
        told = heard(0, chain(turn + 500, 20), 1280.0)
        place.apply_peer_routed(told, now + 1.0)
        mine.finished(now + 2)
        place.apply_peer_first_token(told, now + 2.5)
        place.apply_peer_finished(told, now + 3)
    assert place.loads[0].prefill_rate == pytest.approx(2560.0, rel=0.2)


def test_decoding_is_learned_without_the_prefills_beside_it() -> None:
    """100 tokens in 2 s, of which half a second went into another request's prefill."""
    place = placer()
    for turn in range(60):
        now = 10.0 * turn
        mine = place.place(prompt_of(chain(2 * turn, 20), 20 * BLOCK), 1, now)
        mine.first_token(now + 0.064)
        beside = place.place(prompt_of(chain(2 * turn + 1, 160), 160 * BLOCK), 1, now + 1)
        beside.first_token(now + 1.512)
        mine.finished(now + 2.064, 1280, 101, 0)
        beside.finished(now + 3, 10_240, 2, 0)
    assert place.loads[0].step_seconds == pytest.approx((2.0 - 0.512) / 100, rel=0.2)
    assert place.loads[1].step_seconds == place.loads[0].step_seconds


def test_the_cache_shown_to_policies_is_the_index_s() -> None:
    place = placer(capacity=100 * BLOCK)
    placed = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 1, 7.0)
    assert placed.load.cache_used == pytest.approx(40 * BLOCK / 4, rel=0.01)
    assert placed.load.cache_tokens == pytest.approx(100 * BLOCK / 4, rel=0.01)


def test_a_request_that_outlives_its_replica_touches_no_other() -> None:
    place = placer()
    placed = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 1, 1.0)
    place.index.remove_replica(0)
    assert isinstance(place.loads, list)
    place.loads[0] = Load()
    place.index.add_replica(0, 10**6)
    placed.first_token(1.5)
    placed.finished(2.0)
    assert idle(place.loads[0])
    assert place.index.match(chain(1, 40)) == []


def test_two_routers_have_the_same_books() -> None:
    here, there = placer(), placer()
    placed = here.place(prompt_of(chain(1, 40), 40 * BLOCK), 15, 1.0)
    slot = placed.slot
    prompt = placed.prompt
    told = PeerRequest(
        slot, prompt.size, placed.uncached, placed.tokens, prompt.chain, len(prompt.chain)
    )
    there.apply_peer_routed(told, 1.0)
    assert there.loads[slot] == here.loads[slot]
    assert there.index.match(prompt.chain) == here.index.match(prompt.chain)
    placed.first_token(2.0)
    there.apply_peer_first_token(told, 2.0)
    assert there.loads[slot] == here.loads[slot]
    placed.finished(3.0)
    there.apply_peer_finished(told, 3.0)
    assert there.loads[slot] == here.loads[slot]
    assert idle(there.loads[slot])
    told = heard(slot, prompt.chain, placed.uncached)
    there.apply_peer_routed(told, 4.0)
    there.apply_peer_failed(told, 4.5)
    assert idle(there.loads[slot])


def shared(place: Placer, name: int, now: float) -> dict[int, float]:
    """What the policy is told of the queues when another prompt that begins alike is placed."""
    seen: list[dict[int, float]] = []

    class Watching:
        def members(self, names: Mapping[int, str]) -> None:
            raise NotImplementedError

        def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
            seen.append(dict(ask.shared))
            return Choice(3, "test")

    policy, place.policy = place.policy, Watching()
    like = array("Q", [*chain(name, 40)[:30], 7, 8, 9])
    place.place(prompt_of(like, 33 * BLOCK), 15, now).failed(now)
    place.policy = policy
    return seen[0]


def test_a_prefix_that_is_computed_is_known_until_its_first_token() -> None:
    place = placer()
    for name, end in enumerate(("first", "finished", "failed", "silent"), 1):
        placed = place.place(prompt_of(chain(name, 40), 40 * BLOCK, stream=end != "silent"), 1, 1.0)
        assert shared(place, name, 1.0) == {0: 30 * BLOCK / 4}
        if end == "first":
            placed.first_token(1.1)
        elif end != "silent":
            getattr(placed, end)(1.1)
        assert shared(place, name, 9.0) == {}
        placed.finished(9.0)


def test_only_what_was_not_cached_is_computed() -> None:
    place = placer()
    place.place(prompt_of(chain(1, 20), 20 * BLOCK), 1, 1.0).finished(1.5)
    placed = place.place(prompt_of(chain(1, 40), 40 * BLOCK), 1, 2.0)
    assert placed.held_tokens == 20 * BLOCK / 4
    assert shared(place, 1, 2.0) == {0: 10 * BLOCK / 4}
    placed.failed(2.1)
    told = PeerRequest(0, 40 * BLOCK, placed.uncached, placed.tokens, chain(1, 40), 40)
    place.apply_peer_routed(told, 2.2)
    assert told.prefill is not None
    assert told.prefill.start == 20


def test_what_another_router_has_computed_is_known() -> None:
    place = placer()
    for end in (place.apply_peer_first_token, place.apply_peer_failed):
        told = heard(1, chain(1, 40), 40 * BLOCK / 4)
        place.apply_peer_routed(told, 1.0)
        assert shared(place, 1, 1.0) == {1: 30 * BLOCK / 4}
        end(told, 2.0)
        assert shared(place, 1, 2.0) == {}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(), policy=st.sampled_from(["cache_aware", "session", "consistent_hash"]))
def test_the_books_balance_whatever_happens(seed: int, policy: str) -> None:
    rng, place, now = random.Random(seed), placer(policy=policy, capacity=50 * BLOCK), 0.0
    running = []
    for _ in range(rng.randrange(80)):
        now += rng.random()
        if rng.random() < 0.5 or not running:
            blocks = rng.randrange(30)
            eligible = rng.randrange(1, 16)
            placed = place.place(
                prompt_of(
                    chain(rng.randrange(4), blocks),
                    blocks * BLOCK + rng.randrange(BLOCK),
                    rng.choice("mn"),
                    key=rng.choice(["", "k"]),
                    stream=rng.random() < 0.7,
                    output_limit=rng.randrange(3),
                ),
                eligible,
                now,
            )
            assert eligible >> placed.slot & 1
            assert 1.0 <= placed.uncached <= placed.tokens
            assert placed.held_tokens <= placed.available_tokens
            running.append(placed)
        else:
            placed = rng.choice(running)
            what = rng.randrange(3)
            if what == 0:
                placed.first_token(now)
                continue
            running.remove(placed)
            if what == 1:
                placed.finished(now, rng.randrange(9000), rng.randrange(100))
            else:
                placed.failed(now)
    for placed in running:
        placed.finished(now)
    place.place(prompt_of(NO_CHAIN, 1, "another"), 1, now + 1e6)
    assert all(
        load.queued_tokens == (1.0 if slot == 0 else 0.0) for slot, load in enumerate(place.loads)
    )
    assert [load.in_flight for load in place.loads] == [1, 0, 0, 0]


def test_only_models_that_engines_answer_for_are_learned_of() -> None:
    place = placer()
    for number in range(3 * MAX_MODELS):
        refused = place.place(prompt_of(NO_CHAIN, 10, f"unknown-{number}"), 15, 1.0)
        refused.finished(1.1)
    assert not place.models
    for number in range(3 * MAX_MODELS):
        answered = place.place(prompt_of(NO_CHAIN, 400, f"any-{number}"), 15, 1.0)
        answered.finished(1.1, prompt_tokens=200, output_tokens=7)
    assert len(place.models) == MAX_MODELS
    assert f"any-{3 * MAX_MODELS - 1}" in place.models


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, Placement]] = []

    def routed(self, placement: Placement) -> None:
        self.facts.append(("routed", placement))

    def first_token(self, placement: Placement) -> None:
        self.facts.append(("first_token", placement))

    def finished(self, placement: Placement) -> None:
        self.facts.append(("finished", placement))

    def failed(self, placement: Placement) -> None:
        self.facts.append(("failed", placement))


def test_a_placement_is_settled_with_the_placer_that_made_it() -> None:
    """Two placers share a fleet's loads: what one placed says nothing to the other."""
    by_prefix = placer()
    by_load = Placer(by_prefix.index, load_policy("least_loaded"), by_prefix.loads)
    by_prefix.listener, by_load.listener = told, other = Told(), Told()
    for name, settle in enumerate(("finished", "failed"), 1):
        prompt = prompt_of(chain(name, 40), 40 * BLOCK)
        placed = by_load.place(NO_PROMPT, 15, 1.0)
        getattr(placed, settle)(2.0)
        assert other.facts == [("routed", placed), (settle, placed)]
        # The same prompt under way at both: ending one leaves the other's to be shared.
        alike, mine = by_load.place(prompt, 1, 3.0), by_prefix.place(prompt, 2, 3.0)
        told.facts.clear()
        getattr(alike, settle)(3.1, *([100, 10] if settle == "finished" else []))
        assert told.facts == []
        assert not by_prefix.models
        assert shared(by_prefix, name, 3.2)
        mine.failed(3.3)
        assert not shared(by_prefix, name, 3.4)
        other.facts.clear()
    assert by_load.models["m"].output_tokens < 256
    assert all(idle(load) for load in by_prefix.loads)
    assert not any(hasattr(by_prefix, name) for name in ("first_token", "finished", "failed"))


@pytest.mark.parametrize("computes_after_all", [False, True])
@pytest.mark.parametrize("ends", ["answer", "failed", "failed_first", "overdue"])
def test_a_prompt_that_another_replica_computes_takes_memory_only(
    ends: str, computes_after_all: bool
) -> None:
    """Its KV comes here all the same, and the books go back to nothing whatever happens."""
    place = placer(1)
    prompt = prompt_of(chain(1, 40), 40 * BLOCK)
    first = place.place(prompt, 1, 1.0)
    load = first.load
    uncached = first.uncached
    assert uncached > 1000.0
    first.relieve(1.0)
    assert (load.queued_tokens, load.kv_tokens) == (1.0, uncached)
    assert load.busy_until - 1.0 == pytest.approx(1.0 / load.prefill_rate)
    if computes_after_all:
        first.burden(2.0)
        assert (load.queued_tokens, load.kv_tokens) == (uncached, uncached)
        assert load.busy_until - 2.0 == pytest.approx((uncached - 1.0) / load.prefill_rate)
    if ends == "failed":
        first.failed(3.0)
    else:
        if ends == "overdue":
            first.prefill_overdue(3.0)
        else:
            first.first_token(3.0)
        assert (load.queued_tokens, load.kv_tokens) == (0.0, uncached)
        first.burden(3.5)  # too late to be charged
        if ends == "failed_first":
            first.failed(4.0)
        else:
            first.finished(4.0)
    assert idle(load)
