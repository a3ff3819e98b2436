"""Prefill and decode apart, in virtual time."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.engine import EngineParams
from loadgen.simulate import arms_of, arrangement, prepare, run_loop
from loadgen.simulate.apart import DECIDER_TOKENS
from loadgen.simulate.peers import DYNAMO_QUEUE
from loadgen.workloads import Plan, Poisson, make
from router.config.queueing import QueueSettings
from router.prompt.spans import SPANS

PARAMS = EngineParams(block_size=64, num_blocks=4000)
AGENTS = Plan(make("agent"), Poisson(6.0), seed=3, duration=30.0)
SINGLE = Plan(make("unique", {"output_tokens": "20"}), Poisson(0.2), seed=3, duration=60.0)
NEVER, CHOSEN, ALWAYS, DECIDER = arms_of(arrangement("cache_aware"), 2)


def run(plan: Plan, arranged: object, **setup: object):  # type: ignore[no-untyped-def]
    prepared = prepare(plan, PARAMS.block_size, SPANS)
    return run_loop(prepared, arranged, [PARAMS] * 5, prefill=2, **setup)  # type: ignore[arg-type]


@pytest.mark.parametrize("arranged", [NEVER, CHOSEN, ALWAYS, DECIDER], ids=lambda each: each.name)
@pytest.mark.parametrize("routers", [1, 2])
def test_every_request_is_answered_and_nothing_is_left(arranged: object, routers: int) -> None:
    loop = run(AGENTS, arranged, routers=routers, sync=0.02)
    records = loop.records
    assert len(records) > 40
    assert not any(records.reason)
    assert all(engine.kv_usage == 0.0 and not engine.kept for engine in loop.engines)
    for placer in loop.gateways.placers:
        for load in placer.loads:
            assert (load.in_flight, load.queued_tokens, load.kv_tokens) == (0, 0.0, 0.0)


def test_who_prefills() -> None:
    never, chosen, always = (run(AGENTS, each) for each in (NEVER, CHOSEN, ALWAYS))
    assert all(engine.counters.prompt_tokens for engine in never.engines)
    assert never.gateways.apart.handed_over == 0
    assert 0 < chosen.gateways.apart.handed_over < len(chosen.records)
    assert always.gateways.apart.handed_over == len(always.records)
    decode = always.engines[:3]
    assert all(each.counters.prompt_tokens_fetched for each in decode)
    # The engines that prefill give one token of each answer, and no client gets it.
    first = sum(engine.counters.generation_tokens for engine in always.engines[3:])
    assert first == len(always.records)
    # What a client is told to be cached is what nobody computed.
    reused = sum(engine.counters.prefix_hits for engine in always.engines[3:])
    assert sum(always.records.cached_tokens) == reused


def test_an_idle_fleet_prefills_where_it_decodes() -> None:
    loop = run(SINGLE, CHOSEN)
    assert len(loop.records) > 5
    assert loop.gateways.apart.handed_over == 0


@pytest.mark.parametrize("plan", [SINGLE, AGENTS], ids=["new", "turns"])
def test_the_decider_splits_what_is_not_cached_and_nothing_else(plan: Plan) -> None:
    """Long new prompts on idle engines, which cost alone would not split; and turns of agents, some
    of which are cached."""
    loop = run(plan, DECIDER)
    records = loop.records
    prompts = zip(records.prompt_tokens, records.cached_tokens, strict=True)
    lacking = sum(prompt - cached >= DECIDER_TOKENS for prompt, cached in prompts)
    assert 0 < lacking < len(records)
    # The gateway goes by its estimate of tokens.
    assert loop.gateways.apart.handed_over == pytest.approx(lacking, rel=0.1)


def test_a_transfer_takes_its_bytes() -> None:
    """On idle engines, a request takes both legs, the transfer, and nothing else."""
    loop = run(SINGLE, ALWAYS)
    prompt = loop.records.prompt_tokens[0]
    took = loop.records.first[0] - loop.records.scheduled[0]
    step = PARAMS.step_base_seconds + PARAMS.step_request_seconds
    transfer = 0.002 + prompt * 131_072 / 25e9
    chunks = -(-prompt // PARAMS.max_num_batched_tokens)
    assert took == pytest.approx(
        (chunks + 1) * step + (prompt + 1) / PARAMS.prefill_rate + transfer
    )


def test_a_queue_is_not_simulated_with_it() -> None:
    queued = msgspec.structs.replace(arrangement("cache_aware"), queue=QueueSettings())
    for each in (queued, DYNAMO_QUEUE):
        with pytest.raises(ValueError, match="not simulated with --prefill"):
            arms_of(each, 1)
    both = msgspec.structs.replace(queued, apart="always")
    with pytest.raises(ValueError, match="not simulated together with a queue"):
        run(AGENTS, both)
