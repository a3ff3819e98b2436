from __future__ import annotations

from array import array
from itertools import pairwise

import pytest

from loadgen.engine import Engine, EngineParams, Request
from loadgen.simulate.arms import arrangement
from loadgen.simulate.exact import ExactIndex
from loadgen.simulate.fleet import AT_ONCE, Gateways, Gauge
from loadgen.simulate.peers.dynamo import DynamoCost
from loadgen.simulate.peers.llmd import WeightedScorers
from loadgen.simulate.peers.sglang import SglangCacheAware
from loadgen.simulate.prepare import prepare
from loadgen.workloads import Fixed, Plan, make
from router.prompt.spans import SPANS
from router.types import Load, RoutingRequest

NAMES = {slot: str(slot) for slot in range(4)}


def ask(held: list[tuple[float, int]] | None = None, eligible: int = 15) -> RoutingRequest:
    return RoutingRequest(eligible, 1000.0, held or [], 100.0, "", 0, 10.0)


def fleet() -> list[Load]:
    return [Load() for _ in range(4)]


class TestExactIndex:
    params = EngineParams(block_size=16, num_blocks=41)

    def run(self, engine: Engine, chain: array[int]) -> None:
        engine.add(Request(len(chain) * 16, 1, chain), 0.0)
        while not engine.idle:
            engine.step()

    def test_what_an_engine_holds_is_what_it_would_reuse(self) -> None:
        engines = [Engine(self.params), Engine(self.params)]
        index = ExactIndex(engines, 4)
        chain = array("q", range(100, 130))
        assert index.match(chain) == []
        self.run(engines[1], chain[:20])
        assert index.match(chain) == [(20 * 16 * 4, 0b10)]
        self.run(engines[1], array("q", range(200, 238)))
        held = index.match(chain)
        again = Request(30 * 16, 1, chain)
        engines[1].add(again, 1.0)
        assert again.cached_tokens * 4 == (held[0][0] if held else 0)

    def test_what_is_on_its_way_counts_until_it_has_ended(self) -> None:
        index = ExactIndex([Engine(self.params), Engine(self.params)], 4)
        one, two = array("q", range(100, 110)), array("q", range(100, 104))
        index.record(0, one, 1.0)
        index.record(0, two, 1.0)
        assert index.match(one) == [(640, 0b01)]
        index.record(0, one, 2.0)
        assert index.match(one) == [(256, 0b01)]
        index.record(0, two, 2.0)
        assert index.match(one) == []

    def test_the_room_is_the_engine_s(self) -> None:
        engine = Engine(self.params)
        index = ExactIndex([engine], 4)
        first, second = array("q", range(100, 130)), array("q", range(200, 210))
        for now, chain in ((1.0, first), (2.0, second)):
            index.record(0, chain, now)
            self.run(engine, chain)
        room = index.room(0)
        assert room.capacity == 40 * 16 * 4
        assert room.used == 40 * 16 * 4


@pytest.mark.parametrize(("sync", "sent"), [(0.5, AT_ONCE), (AT_ONCE / 2, AT_ONCE / 2)])
def test_routers_hear_of_each_other_after_the_lag(sync: float, sent: float) -> None:
    coming = []
    engine = EngineParams(block_size=64, num_blocks=4000)
    gateways = Gateways(
        arrangement("round_robin"),
        [Engine(engine)],
        SPANS,
        routers=2,
        sync=sync,
        seed=1,
        known_speed=False,
        later=lambda at, call: coming.append((at, call)),
    )
    ((_, (job, *_)),) = prepare(Plan(make("unique"), Fixed(1.0), requests=1), 64, SPANS).sessions
    router, placement = gateways.place(job, 10.0)
    here, there = gateways.placers[router], gateways.placers[1 - router]
    assert here.loads[0].in_flight == 1
    assert there.loads[0].in_flight == 0
    gateways.first_token(router, placement, 11.0)
    gateways.finished(router, placement, job, 0, 12.0)
    assert [at for at, _ in coming] == [10.0 + sent, 11.0 + sync, 12.0 + sync]
    seen = []
    for at, call in coming:
        call(at)
        seen.append((there.loads[0].in_flight, there.loads[0].queued_tokens))
    assert seen == [(1, placement.uncached), (1, 0.0), (0, 0.0)]
    assert there.index.match(job.chain) == here.index.match(job.chain) != []


def test_a_prepared_chain_and_engine_hashes_name_the_same_prefixes() -> None:
    prepared = prepare(Plan(make("chat"), Fixed(1.0), requests=60), 16, SPANS)
    for _, jobs in prepared.sessions:
        for before, after in pairwise(jobs):
            shared = before.prompt_tokens + before.output_tokens
            whole = [*before.hashes, *before.output_hashes]
            assert list(after.hashes[: shared // 16]) == whole
            assert after.chain[: len(before.chain)] == before.chain
            assert len(after.chain) > 0
            assert SPANS[len(after.chain)] <= after.prompt_tokens * 4


class TestSglang:
    def test_highest_match_over_the_threshold(self) -> None:
        policy = SglangCacheAware()
        assert policy.choose(ask([(600.0, 0b100)]), fleet()).slot == 2

    def test_smallest_tree_below_it(self) -> None:
        books = fleet()
        for load in books:
            load.cache_used = 10.0
        books[3].cache_used = 5.0
        assert SglangCacheAware().choose(ask([(400.0, 0b100)]), books).slot == 3

    def test_shortest_queue_when_out_of_balance(self) -> None:
        books = fleet()
        for load in books:
            load.in_flight = 2
        books[2].in_flight = 35
        books[1].in_flight = 1
        assert SglangCacheAware().choose(ask([(900.0, 0b100)]), books).slot == 1


class TestLlmd:
    def test_weights_queue_cache_and_prefix(self) -> None:
        policy = WeightedScorers()
        policy.members(NAMES)
        assert policy.choose(ask([(900.0, 0b10)]), fleet()).slot == 1
        policy.polled([Gauge(0, 0, 0.0), Gauge(9, 9, 0.9), Gauge(1, 9, 0.9), Gauge(1, 9, 0.9)])
        assert policy.choose(ask([(900.0, 0b10)]), fleet()).slot == 0


class TestDynamo:
    def test_prefill_and_decode_blocks(self) -> None:
        books = fleet()
        policy = DynamoCost()
        assert policy.choose(ask([(900.0, 0b1000)]), books).slot == 3
        books[3].queued_tokens = 1000.0
        books[3].kv_tokens = 1000.0
        assert policy.choose(ask([(900.0, 0b1000)]), books).slot != 3
