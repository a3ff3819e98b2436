"""Simulations as the command line and the tests ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, Unpack

import msgspec
import numpy as np

from loadgen.engine import EngineParams
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Reuse
from loadgen.simulate.arms import arrangement
from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.loop import Change, Loop, Outage
from loadgen.simulate.prepare import Prepared, prepare
from loadgen.workloads import Plan
from router.prompt.spans import SPANS
from router.scheduling.tier_prices import CPU


class ArmRun(msgspec.Struct, frozen=True):
    """One run of one arm."""

    records: Records
    reuse: Reuse
    preemptions: int
    learned: float
    """Prefill tokens a second that the first router took the engines for at the end, on average."""
    handed_over: int = 0
    """Requests that another replica prefilled than the one that answered."""
    adapter_loads: int = 0
    """Times that an engine loaded a LoRA adapter."""
    cached: int = 0
    """Prompt tokens that the engines reused."""
    loaded: int = 0
    """Those of them that came from tiers behind GPU memory."""
    load_seconds: float = 0.0
    """What the first router took a token from there to take at the end, on average; 0 where there
    are no tiers."""


def simulate(
    plan: Plan,
    names: Sequence[str],
    *,
    replicas: int = 8,
    engine: EngineParams | Sequence[EngineParams] | None = None,
    routers: int = 1,
    sync: float | None = 0.0,
    seed: int = 0,
    keys: bool = False,
    known_speed: bool = False,
    objectives_ms: Mapping[str, float] | None = None,
) -> list[Arm]:
    """One arm for each name, all under the same arrivals.

    names: built-in policies, import paths of others, or peers (``arms.ARRANGEMENTS``). engine: one
    set of parameters for all replicas, or one for each. sync: seconds until routers hear of each
    other's requests; None: never. keys: clients name their sessions. known_speed: the gateway
    starts with the engines' true rates instead of its defaults. Raises ValueError for names and
    numbers that make no sense.
    """
    if replicas < 1 or routers < 1:
        raise ValueError(f"replicas ({replicas}) and routers ({routers}) must be at least 1")
    if sync is not None and sync < 0:
        raise ValueError(f"sync must not be negative, not {sync}; None for never")
    if engine is None:
        engine = EngineParams()
    params = [engine] * replicas if isinstance(engine, EngineParams) else list(engine)
    if len(params) != replicas:
        raise ValueError(f"{len(params)} sets of engine parameters for {replicas} replicas")
    if len({each.block_size for each in params}) > 1:
        raise ValueError("all simulated engines must have the same block_size")
    arrangements = [arrangement(name) for name in names]
    prepared = prepare(plan, params[0].block_size, SPANS, keys=keys)
    return [
        run_arm(
            prepared,
            each,
            params,
            routers=routers,
            sync=sync,
            seed=seed,
            known_speed=known_speed,
            objectives_ms=objectives_ms,
        )
        for each in arrangements
    ]


class Setup(TypedDict, total=False):
    """What `run_loop` may be told besides; as `simulate` says."""

    routers: int
    sync: float | None
    seed: int
    known_speed: bool
    changes: Sequence[Change]
    outages: Sequence[Outage]
    patience: float
    prefill: int


def run_arm(
    prepared: Prepared,
    arranged: Arrangement,
    params: Sequence[EngineParams],
    *,
    objectives_ms: Mapping[str, float] | None = None,
    **setup: Unpack[Setup],
) -> Arm:
    """One arm over a prepared workload. The same arguments give the same arm."""
    run = run_once(prepared, arranged, params, **setup)
    return arm_of(arranged.name, [run], replicas=len(params), objectives_ms=objectives_ms)


def run_once(
    prepared: Prepared,
    arranged: Arrangement,
    params: Sequence[EngineParams],
    **setup: Unpack[Setup],
) -> ArmRun:
    """One run of an arm, which ``arm_of`` makes an arm of."""
    loop = run_loop(prepared, arranged, params, **setup)
    reuse = Reuse(*(getattr(loop.ledger, stage) for stage in Reuse.__struct_fields__))
    rates = [load.prefill_rate for load in loop.gateways.placers[0].loads]
    return ArmRun(
        loop.records,
        reuse,
        sum(engine.counters.preemptions for engine in loop.engines),
        float(np.mean(rates)),
        loop.gateways.apart.handed_over,
        sum(engine.adapters.loads for engine in loop.engines),
        sum(engine.counters.prompt_tokens_cached for engine in loop.engines),
        sum(engine.counters.prompt_tokens_loaded for engine in loop.engines),
        _load_seconds(loop),
    )


def _load_seconds(loop: Loop) -> float:
    prices = loop.gateways.placers[0].prices
    told = [
        prices.seconds(slot, CPU)
        for slot, engine in enumerate(loop.engines)
        if engine.tier is not None
    ]
    return float(np.mean(told)) if told else 0.0


def arm_of(
    name: str,
    runs: Sequence[ArmRun],
    *,
    replicas: int,
    objectives_ms: Mapping[str, float] | None = None,
    load: float = 0.0,
) -> Arm:
    """All runs of an arm, at least one, as one."""
    arm = summarise(
        name,
        *(run.records for run in runs),
        objectives_ms=objectives_ms,
        replicas=tuple(f"replica-{slot}" for slot in range(replicas)),
        load=load,
    )
    stages = Reuse.__struct_fields__
    arm.reuse = Reuse(*(sum(getattr(run.reuse, stage) for run in runs) for stage in stages))
    loads = sum(run.adapter_loads for run in runs)
    arm.extra = {
        "preemptions": float(sum(run.preemptions for run in runs)),
        "learned_prefill_tokens_per_s": float(np.mean([run.learned for run in runs])),
    }
    if loads:
        arm.extra["adapter_loads"] = float(loads)
    if any(run.load_seconds for run in runs):
        arm.extra["loaded_tokens"] = float(sum(run.loaded for run in runs))
        arm.extra["learned_load_us_per_token"] = 1e6 * float(
            np.mean([run.load_seconds for run in runs])
        )
    elsewhere = sum(run.handed_over for run in runs)
    if elsewhere:
        arm.extra["prefilled_elsewhere"] = float(elsewhere)
    return arm


def run_loop(
    prepared: Prepared,
    arranged: Arrangement,
    params: Sequence[EngineParams],
    *,
    routers: int = 1,
    sync: float | None = 0.0,
    seed: int = 0,
    known_speed: bool = False,
    changes: Sequence[Change] = (),
    outages: Sequence[Outage] = (),
    patience: float = 0.0,
    prefill: int = 0,
) -> Loop:
    """The loop after its end, with its records and engines. changes: of engines, under way.
    outages: of replicas. patience: seconds after which a client without a first token leaves; 0:
    never. prefill: how many of the engines, the last ones, prefill for the others in arrangements
    that have them apart."""
    loop = Loop(
        prepared,
        arranged,
        params,
        SPANS,
        routers=routers,
        sync=sync,
        seed=seed,
        known_speed=known_speed,
        changes=changes,
        outages=outages,
        patience=patience,
        prefill=prefill,
    )
    loop.run()
    return loop
