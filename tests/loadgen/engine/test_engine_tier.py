"""The tier behind GPU memory: what enters it, what a hit there costs, and that nothing is lost."""

from __future__ import annotations

import random
from math import inf

import msgspec
import pytest

from loadgen.engine import Engine, EngineParams, Request, Stage, offloading, preset

PARAMS = EngineParams(
    num_blocks=101,
    max_num_batched_tokens=512,
    max_num_seqs=16,
    offload_tokens=3200,
    offload_token_seconds=1e-5,
    offload_base_seconds=0.002,
)
NO_TIER = msgspec.structs.replace(PARAMS, offload_tokens=0)


def request(prompt: int, first: int = 0, output: int = 4) -> Request:
    return Request(prompt, output, range(first, first + prompt // 16))


class Seen:
    """What an observer is told of the tier."""

    def __init__(self) -> None:
        self.tier: set[int] = set()
        self.order: list[tuple[str, int]] = []

    def stored(self, request: Request, first: int, end: int) -> None: ...

    def cleared(self) -> None: ...

    def removed(self, key: int) -> None:
        self.order.append(("removed", key))

    def offloaded(self, key: int) -> None:
        assert key not in self.tier
        self.tier.add(key)
        self.order.append(("offloaded", key))

    def dropped(self, key: int) -> None:
        self.tier.remove(key)


def run(engine: Engine) -> None:
    while engine.due < inf:
        engine.step()


def served(engine: Engine, one: Request, now: float) -> Request:
    engine.add(one, now)
    run(engine)
    assert one.stage is Stage.DONE
    return one


def test_what_gpu_memory_evicts_is_loaded_from_the_tier() -> None:
    seen = Seen()
    engine = Engine(PARAMS, observer=seen)
    served(engine, request(800), 0.0)
    served(engine, request(1504, first=1000), 10.0)  # takes the place of most of it
    # Where a router is told of both, the block never seems to be nowhere.
    assert seen.order[0] == ("offloaded", seen.order[1][1])
    assert seen.order[1][0] == "removed"
    again = served(engine, request(800), 20.0)
    here = 100 - 94 - 1  # blocks that GPU memory still had, the answer's own aside
    assert again.cached_tokens == 784
    assert 784 - here * 16 <= again.loaded_tokens <= 784
    # The time to the first token: the transfer, and a step for the last 16 tokens.
    step = PARAMS.step_base_seconds + PARAMS.step_request_seconds + 16 / PARAMS.prefill_rate
    load = PARAMS.offload_base_seconds + again.loaded_tokens * PARAMS.offload_token_seconds
    assert again.first_token_at - 20.0 == pytest.approx(load + step)
    counters = engine.counters
    assert counters.offload_hits == counters.prompt_tokens_loaded == again.loaded_tokens
    assert counters.offload_load_seconds == pytest.approx(load)
    # Now it is in GPU memory.
    assert served(engine, request(800), 30.0).loaded_tokens == 0
    # Without a tier, it is gone.
    bare = Engine(NO_TIER)
    served(bare, request(800), 0.0)
    served(bare, request(1504, first=1000), 10.0)
    assert served(bare, request(800), 20.0).cached_tokens < 100


def test_the_least_recently_used_leaves_a_full_tier() -> None:
    engine = Engine(msgspec.structs.replace(PARAMS, offload_tokens=800))
    for turn in range(4):
        served(engine, request(1504, first=1000 * turn), 10.0 * turn)
    assert engine.tier is not None
    assert len(engine.tier.blocks) == 50
    # GPU memory evicts tails first, so that the tier keeps what lies nearest to the head of the
    # youngest that was evicted; five blocks of its head are in GPU memory still.
    assert set(engine.tier.blocks) == set(range(2005, 2055))
    assert engine.reset_cache()
    assert not engine.tier.blocks


def test_transfers_pass_one_after_the_other_while_others_are_computed() -> None:
    engine = Engine(PARAMS)
    for turn in range(4):
        served(engine, request(640, first=1000 * turn), 10.0 * turn)
    first, second, new = request(640), request(640, first=1000), request(16, first=9000)
    for one in (first, second, new):
        engine.add(one, 50.0)
    run(engine)
    assert first.loaded_tokens > 300
    assert second.loaded_tokens > 300
    load = PARAMS.offload_base_seconds + second.loaded_tokens * PARAMS.offload_token_seconds
    assert second.first_token_at >= first.scheduled_at + 2 * load
    assert new.first_token_at < second.first_token_at


def test_an_abort_while_loading_frees_its_blocks() -> None:
    engine = Engine(PARAMS)
    served(engine, request(800), 0.0)
    served(engine, request(1504, first=1000), 10.0)
    gone = request(800)
    engine.add(gone, 20.0)
    assert gone.stage is Stage.FETCHING
    engine.abort(gone, 20.001)
    run(engine)
    assert (gone.stage, engine.kv_usage) == (Stage.DONE, 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_everything_ends_and_nothing_is_held_in_the_end(seed: int) -> None:
    chance = random.Random(seed)
    seen = Seen()
    engine = Engine(PARAMS, observer=seen)
    requests = []
    now = 0.0
    for _ in range(120):
        now += chance.expovariate(40.0)
        while engine.due <= now:
            engine.step()
        one = request(
            chance.randrange(16, 1200), 1000 * chance.randrange(6), chance.randrange(1, 40)
        )
        one.output_hashes = ()
        engine.add(one, now)
        requests.append(one)
        if chance.random() < 0.1:
            engine.abort(chance.choice(requests), now)
    run(engine)
    assert all(one.stage is Stage.DONE for one in requests)
    assert engine.kv_usage == 0.0
    assert engine.tier is not None
    assert seen.tier == set(engine.tier.blocks)
    assert len(seen.tier) <= engine.tier.room
    assert engine.counters.offload_hits > 0
    for one in requests:
        if not one.aborted:
            assert 0 <= one.loaded_tokens <= one.cached_tokens < one.prompt_tokens


def test_a_tier_in_gigabytes() -> None:
    engine = offloading(preset("8b-h100"), 131.072, 50.0)
    assert engine.offload_tokens == 1_000_000
    assert engine.offload_token_seconds == pytest.approx(131_072 / 50e9)
    assert offloading(engine, 0.0).offload_tokens == 0
    with pytest.raises(ValueError, match="-1"):
        offloading(engine, -1.0)
