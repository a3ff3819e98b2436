"""Simulations as the command line and the tests ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadgen.engine import EngineParams
from loadgen.metrics import summarise
from loadgen.results import Arm
from loadgen.simulate.arms import arrangement
from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.loop import Loop
from loadgen.simulate.prepare import Prepared, prepare
from loadgen.workloads import Plan
from router.spans import SPANS


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


def run_arm(
    prepared: Prepared,
    arranged: Arrangement,
    params: Sequence[EngineParams],
    *,
    routers: int = 1,
    sync: float | None = 0.0,
    seed: int = 0,
    known_speed: bool = False,
    objectives_ms: Mapping[str, float] | None = None,
) -> Arm:
    """One arm over a prepared workload. The same arguments give the same arm."""
    loop = run_loop(
        prepared,
        arranged,
        params,
        routers=routers,
        sync=sync,
        seed=seed,
        known_speed=known_speed,
    )
    arm = summarise(
        arranged.name,
        loop.records,
        objectives_ms=objectives_ms,
        replicas=tuple(f"replica-{slot}" for slot in range(len(params))),
    )
    arm.extra = _extra(loop)
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
) -> Loop:
    """The loop after its end, with its records and engines."""
    loop = Loop(
        prepared,
        arranged,
        params,
        SPANS,
        routers=routers,
        sync=sync,
        seed=seed,
        known_speed=known_speed,
    )
    loop.run()
    return loop


def _extra(loop: Loop) -> dict[str, float]:
    preemptions = sum(engine.counters.preemptions for engine in loop.engines)
    rates = [load.prefill_rate for load in loop.gateways.placers[0].loads]
    return {
        "preemptions": float(preemptions),
        "learned_prefill_tokens_per_s": float(np.mean(rates)),
    }
