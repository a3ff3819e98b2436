"""Tiers behind GPU memory: what lies there, what loading it costs, and where a request goes."""

from __future__ import annotations

import random
from array import array
from collections.abc import Mapping

import pytest
from prompts import prompt_of

from router.fleet.engine_metrics import EngineMetrics
from router.fleet.replica_updater import loading_seconds
from router.index import ByteIndex
from router.policies import load_policy
from router.scheduling.device_model import DeviceModel
from router.scheduling.placer import Placement, Placer
from router.scheduling.tier_prices import CPU, TierPrices
from router.types import NO_CHAIN, Chain, Load, TierShare

BLOCK = 256
TOKENS = BLOCK / 4
RATE = 8000.0


def chain(name: int, blocks: int) -> Chain:
    return array("Q", [name * 10_000 + block for block in range(blocks)])


class World:
    """Two replicas with room for 100 blocks in GPU memory; the first has a tier of 300 more."""

    def __init__(
        self, rates: Mapping[str, float] | None = None, shared: tuple[str, ...] = (), tiers: int = 1
    ) -> None:
        spans = range(0, 1000 * BLOCK, BLOCK)
        index = ByteIndex(spans)
        self.model = DeviceModel(spans, shared)
        for slot in range(2):
            tier = slot < tiers
            index.add_replica(slot, (400 if tier else 100) * BLOCK)
            self.model.resize(slot, 100 * BLOCK, tier=tier)
        self.loads = [Load(kv_capacity=100_000.0), Load(kv_capacity=100_000.0)]
        policy = load_policy("cache_aware", seed=1)
        self.placer = Placer(index, policy, self.loads, tiers=self.model, tier_rates=rates or {})
        self.now = 0.0

    def serve(self, name: int, blocks: int, eligible: int = 1, ttft: float = 0.1) -> Placement:
        self.now += 100.0
        prompt = prompt_of(chain(name, blocks), blocks * BLOCK)
        placed = self.placer.place(prompt, eligible, self.now)
        placed.first_token(self.now + ttft)
        tokens = int(blocks * TOKENS)
        cached = min(int(placed.held_tokens), tokens - 1)
        placed.finished(self.now + ttft + 1.0, tokens, 1, cached)
        return placed

    def evict_to_tier(self) -> None:
        """Prompt 1 is in the first replica's tier alone."""
        self.serve(1, 80)
        self.serve(2, 100)


def test_what_gpu_memory_has_no_room_for_is_in_the_tier() -> None:
    world = World()
    world.evict_to_tier()
    again = world.serve(1, 80)
    assert again.behind is not None
    assert again.held_tokens == again.available_tokens == again.behind.tokens == 80 * TOKENS
    assert again.behind.media == {CPU: 80 * TOKENS}
    assert again.uncached == 1.0  # it is loaded, not computed
    # Now it is in GPU memory, and a part of the other one is not.
    assert world.serve(1, 80).behind is None
    other = world.serve(2, 100)
    assert other.behind is not None
    assert other.behind.media == {CPU: 80 * TOKENS}
    world.placer.forget(0)
    assert world.serve(1, 80).held_tokens == 0


def test_a_tier_that_is_gone_does_not_count() -> None:
    world = World()
    world.evict_to_tier()
    world.model.resize(0, 100 * BLOCK, tier=False)
    assert world.model.mask == 0
    assert world.serve(1, 80).behind is None


@pytest.mark.parametrize(("rate", "slot"), [(100_000.0, 0), (500.0, 1)])
def test_a_request_goes_where_loading_and_computing_cost_least(rate: float, slot: int) -> None:
    """5,120 tokens: 51 ms or 10 s of loading, against 640 ms of computing, 1.8 s as it counts."""
    world = World({CPU: rate})
    world.evict_to_tier()
    assert world.serve(1, 80, eligible=0b11).slot == slot


def test_gpu_memory_comes_before_a_tier() -> None:
    world = World({CPU: 100_000.0})
    world.serve(1, 80, eligible=0b10)
    world.evict_to_tier()
    placed = world.serve(1, 80, eligible=0b11)
    assert (placed.slot, placed.behind) == (1, None)


def test_what_is_loaded_before_is_waited_for() -> None:
    world = World({CPU: 20_000.0})
    world.evict_to_tier()
    world.serve(3, 100)
    # 5,120 tokens take 256 ms. The next one waits for them.
    one = world.placer.place(prompt_of(chain(1, 80), 80 * BLOCK), 1, world.now + 50.0)
    load = world.loads[0]
    assert load.loading_until == pytest.approx(world.now + 50.0 + 80 * TOKENS / 20_000.0)
    two = world.placer.place(prompt_of(chain(2, 80), 80 * BLOCK), 1, world.now + 50.0)
    assert load.loading_until == pytest.approx(world.now + 50.0 + 160 * TOKENS / 20_000.0)
    assert two.considered[0][2] - one.considered[0][2] > 0.9 * 80 * TOKENS / 20_000.0
    assert not two.load_teaches


def test_a_shared_tier_is_held_by_everybody() -> None:
    world = World({"STORAGE": 100_000.0}, shared=("STORAGE",), tiers=2)
    world.evict_to_tier()
    placed = world.serve(1, 80, eligible=0b10)
    assert placed.behind is not None
    assert placed.behind.media == {"STORAGE": 80 * TOKENS}
    # With a queue at the one that stored it, the other one takes it.
    world.evict_to_tier()
    world.loads[0].queued_tokens = 5000.0
    placed = world.serve(2, 100, eligible=0b11)
    assert placed.slot == 1, placed.considered


def test_what_loading_takes_is_learned_from_first_tokens() -> None:
    """20 us a token, where every fourth request waits for something else besides."""
    world = World()
    chance = random.Random(1)
    for each in range(10):  # what prefill takes
        blocks = chance.randrange(20, 90)
        world.serve(1000 + each, blocks, ttft=0.01 + blocks * TOKENS / RATE)
    prices = world.placer.prices
    assert (prices.known(0, CPU), prices.seconds(0, CPU)) == (
        "assumed",
        pytest.approx(0.1 / RATE, rel=0.2),
    )
    for each in range(40):
        name = each % 4
        blocks = 60 + 10 * name
        late = 3.0 if each % 4 == chance.randrange(4) else 0.0
        world.serve(name, blocks, ttft=0.01 + blocks * TOKENS * 20e-6 + 1 / RATE + late)
    assert prices.known(0, CPU) == "learned"
    assert prices.seconds(0, CPU) == pytest.approx(20e-6, rel=0.25)
    # Nobody else is known: the others are taken to be alike.
    assert prices.seconds(1, CPU) == prices.seconds(0, CPU)
    # A load that is no prefill has not taught the speed of prefill.
    assert world.loads[0].prefill_rate == pytest.approx(RATE, rel=0.3)
    # No token comes sooner than its transfer took.
    world.loads[0].tier_seconds = 1.0
    assert prices.seconds(0, CPU) == 1.0


def test_prices_from_the_best_known_to_the_least() -> None:
    loads = [Load(), Load()]
    prices = TierPrices(loads, {"DISK": 1000.0})
    share = TierShare(5000.0, {CPU: 1000.0, "DISK": 100.0, "ELSEWHERE": 10.0})
    parts = {part.medium: part for part in prices.parts(0, share)}
    assert [parts[each].known for each in share.media] == ["assumed", "set", "assumed"]
    assert parts["DISK"].seconds == pytest.approx(0.1)
    assert prices.loading(0, share) == pytest.approx(sum(part.seconds for part in parts.values()))
    loads[0].tier_seconds = 5e-6
    assert (prices.known(0, CPU), prices.seconds(0, CPU)) == ("measured", 5e-6)
    assert prices.known(1, CPU) == "assumed"


def test_nobody_waits_for_what_failed_to_be_loaded() -> None:
    """Random ends of requests whose prompt lies in a tier, beside what is left of each of them."""
    draw = random.Random(7)
    world = World({CPU: 20_000.0})
    world.evict_to_tier()
    world.serve(3, 100)
    load, now = world.loads[0], world.now + 50.0
    for _ in range(50):
        now += 100.0
        each = 80 * TOKENS / 20_000.0
        prompt = prompt_of(chain(1, 80), 80 * BLOCK)
        placed = [world.placer.place(prompt, 1, now) for _ in range(draw.randint(1, 5))]
        charged = [one for one in placed if one.loading]
        assert load.loading_until == pytest.approx(now + sum(one.loading for one in charged))
        draw.shuffle(placed)
        left = len(charged)
        for one in placed:
            left -= one in charged
            one.failed(now)
            assert load.loading_until == pytest.approx(now + left * each)
        world.serve(3, 100)
    assert (load.in_flight, load.queued_tokens, load.kv_tokens) == (0, 0.0, 0.0)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("due", [0.001, 0.9], ids=["before its prefill is due", "after"])
def test_nobody_waits_for_what_an_answer_that_ended_has_loaded(*, stream: bool, due: float) -> None:
    """Also where no first token was seen: its answer is no stream, or an empty one."""
    world = World({CPU: 2000.0})
    world.evict_to_tier()
    prompt = prompt_of(chain(1, 80), 80 * BLOCK, stream=stream)
    now = world.now + 100.0
    first = world.placer.place(prompt, 1, now)
    load = first.load
    assert first.loading > 1.0
    assert load.loading_until == pytest.approx(now + first.loading)
    world.placer.place(prompt_of(NO_CHAIN, 10), 2, now + due)
    first.finished(now + due)
    assert load.loading_until == now + due


def test_what_a_replica_teaches_is_not_believed_of_the_next_one_in_its_slot() -> None:
    loads = [Load() for _ in range(4)]
    prices = TierPrices(loads, {})
    for _ in range(40):
        for slot in range(4):
            prices.saw(slot, {CPU: 1000.0}, 5.0 if slot == 3 else 0.1)
    assert prices.seconds(3, CPU) == pytest.approx(5e-3, rel=0.1)
    loads[3] = Load()
    assert prices.seconds(3, CPU) == prices.seconds(0, CPU) == pytest.approx(1e-4, rel=0.1)


def test_counters_that_make_no_sense_do_not_price_a_tier() -> None:
    before = EngineMetrics(load_seconds=0.0, loaded=0.0)
    assert loading_seconds(before, EngineMetrics(load_seconds=1e300, loaded=4096.0)) == 0.0
    told = EngineMetrics(load_seconds=1.0, loaded=4096.0)
    assert loading_seconds(before, told) == pytest.approx(1 / 4096)
