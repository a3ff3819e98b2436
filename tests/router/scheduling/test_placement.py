from __future__ import annotations

import random
from array import array
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.index import ByteIndex
from router.policies import load_policy
from router.scheduling.placer import MAX_MODELS, NO_CHAIN, Placer
from router.types import Chain, Choice, Load, RoutingRequest

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
    first = place.place(chains[0], size, "m", 15, "", 1.0, more=chains[1:])
    place.finished(first, 2.0)
    again = place.place(chains[0], size, "m", 15, "", 3.0, more=chains[1:])
    assert again.slot == first.slot
    assert again.held_tokens == again.available_tokens == size / 4
    place.finished(again, 4.0)
    # The first prompt is new: what is held of the others is enough to go there.
    other = place.place(chain(9, 40), size, "m", 15, "", 5.0, more=chains[1:])
    assert (other.slot, other.held_tokens) == (first.slot, size / 4 * 3 / 4)


def test_the_next_turn_goes_where_the_last_one_went() -> None:
    place = placer()
    first = place.place(chain(1, 40), 40 * BLOCK, "m", 15, "", 1.0)
    assert (first.reason, first.held_tokens, first.available_tokens) == ("no_holder", 0.0, 0.0)
    place.first_token(first, 1.2)
    place.finished(first, 2.0)
    again = place.place(chain(1, 44), 44 * BLOCK + 10, "m", 15, "", 3.0)
    assert (again.slot, again.reason) == (first.slot, "cached")
    assert again.held_tokens == again.available_tokens == 40 * BLOCK / 4
    assert again.uncached == pytest.approx(4 * BLOCK / 4, abs=4)


def test_what_was_available_elsewhere_is_told() -> None:
    place = placer()
    first = place.place(chain(1, 40), 40 * BLOCK, "m", 15, "", 1.0)
    for other in range(4):
        if other != first.slot:
            place.index.record(other, chain(1, 10), 1.0)
    place.loads[first.slot].queued_tokens += 1e6
    place.loads[first.slot].busy_until = 90.0
    shed = place.place(chain(1, 40), 40 * BLOCK, "m", 15, "", 1.1)
    assert shed.reason == "load_shed"
    assert shed.held_tokens == 10 * BLOCK / 4
    assert shed.available_tokens == 40 * BLOCK / 4


def test_a_retry_leaves_no_trace_in_the_books_of_the_first() -> None:
    place = placer()
    first = place.place(chain(1, 40), 40 * BLOCK, "m", 15, "", 1.0)
    place.failed(first, 1.1)
    place.failed(first, 1.1)
    assert idle(first.load)
    second = place.place(chain(1, 40), 40 * BLOCK, "m", 15 & ~(1 << first.slot), "", 1.1)
    assert second.slot != first.slot
    with pytest.raises(ValueError, match="eligible"):
        place.place(chain(1, 40), 40 * BLOCK, "m", 0, "", 1.1)


def test_finished_twice_is_booked_once() -> None:
    place = placer()
    one = place.place(chain(1, 4), 4 * BLOCK, "m", 1, "", 1.0)
    two = place.place(chain(2, 4), 4 * BLOCK, "m", 1, "", 1.0)
    place.finished(one, 2.0)
    place.finished(one, 2.0)
    assert two.load.in_flight == 1
    place.finished(two, 2.0)
    assert idle(two.load)


def test_a_prompt_without_blocks_is_placed_and_charged() -> None:
    place = placer()
    placed = place.place(NO_CHAIN, 100, "m", 15, "", 1.0)
    assert placed.load.in_flight == 1
    assert placed.tokens == 26.0


def test_an_answer_that_is_not_a_stream_is_believed_prefilled_in_time() -> None:
    place = placer()
    placed = place.place(chain(1, 400), 400 * BLOCK, "m", 1, "", 1.0, stream=False)
    place.first_token(placed, 9.0)
    assert placed.load.queued_tokens == placed.uncached
    place.place(chain(2, 4), 4 * BLOCK, "m", 2, "", 1.5)
    assert placed.load.queued_tokens == placed.uncached
    place.place(chain(2, 4), 4 * BLOCK, "m", 2, "", 1.0 + placed.uncached / 20_000 + 0.01)
    assert placed.load.queued_tokens == 0.0
    assert placed.load.in_flight == 1
    place.finished(placed, 9.0, 25_600, 100)
    assert idle(placed.load)
    assert placed.load.prefill_rate == Load().prefill_rate


def test_learns_what_usage_tells() -> None:
    place = placer()
    for turn in range(300):
        placed = place.place(chain(turn, 20), 20 * BLOCK, "m", 1, "", float(turn))
        place.first_token(placed, turn + 0.25)
        place.finished(placed, turn + 0.5, 2000, 40, 0)
    facts = place.models["m"]
    assert facts.bytes_per_token == pytest.approx(20 * BLOCK / 2000, rel=0.02)
    assert facts.output_tokens == pytest.approx(40, rel=0.1)
    assert place.loads[0].prefill_rate == pytest.approx(8000.0, rel=0.2)


def test_speed_is_learned_from_requests_that_did_not_wait() -> None:
    place = placer()
    for turn in range(40):
        ahead = place.place(chain(2 * turn, 200), 200 * BLOCK, "m", 1, "", 10.0 * turn)
        behind = place.place(chain(2 * turn + 1, 20), 20 * BLOCK, "m", 1, "", 10.0 * turn)
        place.first_token(ahead, 10.0 * turn + 1.28)
        place.first_token(behind, 10.0 * turn + 1.4)
        place.finished(behind, 10.0 * turn + 2)
        place.finished(ahead, 10.0 * turn + 2)
    assert place.loads[0].prefill_rate == pytest.approx(10_000.0, rel=0.2)


def test_speed_is_not_learned_from_requests_behind_another_router_s() -> None:
    place = placer()
    for turn in range(40):
        mine = place.place(chain(turn, 20), 20 * BLOCK, "m", 1, "", 10.0 * turn)
        late = 10.0 * turn + 0.5
        place.apply_peer_routed(0, chain(turn + 500, 20), 20 * BLOCK, 1280.0, 1280.0, late)
        place.first_token(mine, 10.0 * turn + 1.0)
        place.apply_peer_first_token(0, 1280.0, 10.0 * turn + 1.0)
        place.finished(mine, 10.0 * turn + 2)
        place.apply_peer_finished(
            0, chain(turn + 500, 20), 20 * BLOCK, 1280.0, 1280.0, 10.0 * turn + 2
        )
    assert place.loads[0].prefill_rate == Load().prefill_rate


def test_speed_is_learned_though_another_router_s_request_comes_after_the_first_token() -> None:
    place = placer()
    for turn in range(40):
        now = 10.0 * turn
        mine = place.place(chain(turn, 20), 20 * BLOCK, "m", 1, "", now)
        place.first_token(mine, now + 0.5)
        place.apply_peer_routed(0, chain(turn + 500, 20), 20 * BLOCK, 1280.0, 1280.0, now + 1.0)
        place.finished(mine, now + 2)
        place.apply_peer_first_token(0, 1280.0, now + 2.5)
        place.apply_peer_finished(0, chain(turn + 500, 20), 20 * BLOCK, 1280.0, 1280.0, now + 3)
    assert place.loads[0].prefill_rate == pytest.approx(2560.0, rel=0.2)


def test_decoding_is_learned_without_the_prefills_beside_it() -> None:
    """100 tokens in 2 s, of which half a second went into another request's prefill."""
    place = placer()
    for turn in range(60):
        now = 10.0 * turn
        mine = place.place(chain(2 * turn, 20), 20 * BLOCK, "m", 1, "", now)
        place.first_token(mine, now + 0.064)
        beside = place.place(chain(2 * turn + 1, 160), 160 * BLOCK, "m", 1, "", now + 1)
        place.first_token(beside, now + 1.512)
        place.finished(mine, now + 2.064, 1280, 101, 0)
        place.finished(beside, now + 3, 10_240, 2, 0)
    assert place.loads[0].step_seconds == pytest.approx((2.0 - 0.512) / 100, rel=0.2)
    assert place.loads[1].step_seconds == place.loads[0].step_seconds


def test_the_cache_shown_to_policies_is_the_index_s() -> None:
    place = placer(capacity=100 * BLOCK)
    placed = place.place(chain(1, 40), 40 * BLOCK, "m", 1, "", 7.0)
    assert placed.load.cache_used == pytest.approx(40 * BLOCK / 4, rel=0.01)
    assert placed.load.cache_tokens == pytest.approx(100 * BLOCK / 4, rel=0.01)


def test_a_request_that_outlives_its_replica_touches_no_other() -> None:
    place = placer()
    placed = place.place(chain(1, 40), 40 * BLOCK, "m", 1, "", 1.0)
    place.index.remove_replica(0)
    assert isinstance(place.loads, list)
    place.loads[0] = Load()
    place.index.add_replica(0, 10**6)
    place.first_token(placed, 1.5)
    place.finished(placed, 2.0)
    assert idle(place.loads[0])
    assert place.index.match(chain(1, 40)) == []


def test_two_routers_have_the_same_books() -> None:
    here, there = placer(), placer()
    placed = here.place(chain(1, 40), 40 * BLOCK, "m", 15, "", 1.0)
    slot = placed.slot
    size, uncached, tokens = placed.prompt_bytes, placed.uncached, placed.tokens
    there.apply_peer_routed(slot, placed.chain, size, uncached, tokens, 1.0)
    assert there.loads[slot] == here.loads[slot]
    assert there.index.match(placed.chain) == here.index.match(placed.chain)
    here.first_token(placed, 2.0)
    there.apply_peer_first_token(slot, uncached, 2.0)
    assert there.loads[slot] == here.loads[slot]
    here.finished(placed, 3.0)
    there.apply_peer_finished(slot, placed.chain, size, uncached, tokens, 3.0)
    assert there.loads[slot] == here.loads[slot]
    assert idle(there.loads[slot])
    there.apply_peer_routed(slot, placed.chain, size, uncached, tokens, 4.0)
    there.apply_peer_failed(slot, uncached, tokens, 4.5)
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
    place.failed(place.place(like, 33 * BLOCK, "m", 15, "", now), now)
    place.policy = policy
    return seen[0]


def test_a_prefix_that_is_computed_is_known_until_its_first_token() -> None:
    place = placer()
    for name, end in enumerate(("first", "finished", "failed", "silent"), 1):
        placed = place.place(chain(name, 40), 40 * BLOCK, "m", 1, "", 1.0, stream=end != "silent")
        assert shared(place, name, 1.0) == {0: 30 * BLOCK / 4}
        if end == "first":
            place.first_token(placed, 1.1)
        elif end != "silent":
            getattr(place, end)(placed, 1.1)
        assert shared(place, name, 9.0) == {}
        place.finished(placed, 9.0)


def test_only_what_was_not_cached_is_computed() -> None:
    place = placer()
    place.finished(place.place(chain(1, 20), 20 * BLOCK, "m", 1, "", 1.0), 1.5)
    placed = place.place(chain(1, 40), 40 * BLOCK, "m", 1, "", 2.0)
    assert placed.held_tokens == 20 * BLOCK / 4
    assert shared(place, 1, 2.0) == {0: 10 * BLOCK / 4}
    place.failed(placed, 2.1)
    heard = place.apply_peer_routed(
        0, chain(1, 40), 40 * BLOCK, placed.uncached, placed.tokens, 2.2
    )
    assert heard is not None
    assert heard.start == 20


def test_what_another_router_has_computed_is_known() -> None:
    place = placer()
    for end in (place.apply_peer_first_token, place.apply_peer_failed):
        size, tokens = 40 * BLOCK, 40 * BLOCK / 4
        prefill = place.apply_peer_routed(1, chain(1, 40), size, tokens, tokens, 1.0)
        assert shared(place, 1, 1.0) == {1: 30 * BLOCK / 4}
        if end == place.apply_peer_first_token:
            place.apply_peer_first_token(1, tokens, 2.0, prefill)
        else:
            place.apply_peer_failed(1, tokens, tokens, 2.0, prefill)
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
                chain(rng.randrange(4), blocks),
                blocks * BLOCK + rng.randrange(BLOCK),
                rng.choice("mn"),
                eligible,
                rng.choice(["", "k"]),
                now,
                stream=rng.random() < 0.7,
                output_limit=rng.randrange(3),
            )
            assert eligible >> placed.slot & 1
            assert 1.0 <= placed.uncached <= placed.tokens
            assert placed.held_tokens <= placed.available_tokens
            running.append(placed)
        else:
            placed = rng.choice(running)
            what = rng.randrange(3)
            if what == 0:
                place.first_token(placed, now)
                continue
            running.remove(placed)
            if what == 1:
                place.finished(placed, now, rng.randrange(9000), rng.randrange(100))
            else:
                place.failed(placed, now)
    for placed in running:
        place.finished(placed, now)
    place.place(NO_CHAIN, 1, "another", 1, "", now + 1e6)
    assert all(
        load.queued_tokens == (1.0 if slot == 0 else 0.0) for slot, load in enumerate(place.loads)
    )
    assert [load.in_flight for load in place.loads] == [1, 0, 0, 0]


def test_only_models_that_engines_answer_for_are_learned_of() -> None:
    place = placer()
    for number in range(3 * MAX_MODELS):
        refused = place.place(NO_CHAIN, 10, f"unknown-{number}", 15, "", 1.0)
        place.finished(refused, 1.1)
    assert not place.models
    for number in range(3 * MAX_MODELS):
        answered = place.place(NO_CHAIN, 400, f"any-{number}", 15, "", 1.0)
        place.finished(answered, 1.1, prompt_tokens=200, output_tokens=7)
    assert len(place.models) == MAX_MODELS
    assert f"any-{3 * MAX_MODELS - 1}" in place.models
