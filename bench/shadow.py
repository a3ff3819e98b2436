"""How true and how dear shadow policies are: python -m bench.shadow [--json FILE]

In virtual time, `cache_aware` serves a workload while shadows of other policies look on. Then each
of those policies serves the same arrivals itself. Shown are the hit rates that the shadows
predicted and those that came of it, and the CPU microseconds that a shadow takes for a request.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.engine import EngineParams
from loadgen.simulate import arrangement, coarser, prepare, simulate
from loadgen.simulate.loop import Loop
from loadgen.workloads import Plan, Poisson, make
from router.prompt.spans import SPANS
from router.scheduling.learning import BYTES_PER_TOKEN
from router.shadow.shadows import Shadows

LIVE = "cache_aware"
SHADOWS = ("round_robin", "least_loaded", "consistent_hash", "session")
CASES = (("agent", 12.0), ("chat", 40.0), ("hot", 40.0), ("rag", 20.0))
"""(workload, requests a second) on 8 replicas."""


class Member(msgspec.Struct, frozen=True):
    """A simulated replica."""

    block_tokens: int


class Members:
    """A fleet that never changes."""

    def __init__(self, params: Sequence[EngineParams]) -> None:
        self.replicas = [Member(each.block_size) for each in params]

    def members(self) -> Sequence[Member]:
        return self.replicas


class Row(msgspec.Struct, frozen=True):
    """One policy on one workload; hit rates in percent."""

    workload: str
    policy: str
    predicted: float
    real: float
    us_a_request: float


def watched(
    plan: Plan, names: Sequence[str], engine: EngineParams, replicas: int, seed: int
) -> tuple[Shadows, float, int]:
    """(shadows, CPU seconds that they took, requests) of one run under the live policy."""
    params = [engine] * replicas
    prepared = prepare(plan, engine.block_size, SPANS, keys=True)
    loop = Loop(
        prepared,
        arrangement(LIVE),
        params,
        SPANS,
        routers=1,
        sync=None,
        seed=seed,
        known_speed=False,
    )
    waiting: list[Callable[[], None]] = []
    now = 0.0
    placer = loop.gateways.placers[0]
    shadows = Shadows(
        Members(params),
        placer,
        LIVE,
        names,
        clock=lambda: now,
        later=lambda _, call: waiting.append(call),
    )
    members = {slot: f"replica-{slot}" for slot in range(replicas)}
    for shadow in shadows.all:
        for slot, each in enumerate(params):
            shadow.add_replica(slot, int(each.cache_tokens * BYTES_PER_TOKEN))
        shadow.policy.members(members)
    placer.listener = shadows
    spent, requests = 0.0, 0
    loop.begin()
    while loop.due < float("inf"):
        now = loop.due
        loop.turn()
        start = time.process_time()
        while waiting:
            waiting.pop()()
        spent += time.process_time() - start
    requests = shadows.control.rolling.total.requests
    return shadows, spent, requests


def measure(workload: str, rate: float, count: int, seed: int) -> list[Row]:
    """All shadows on one workload."""
    engine = coarser(EngineParams(), 64)
    plan = Plan(make(workload, {}), Poisson(rate), requests=count)
    shadows, spent, requests = watched(plan, SHADOWS, engine, 8, seed)
    each = spent / requests / len(shadows.all) * 1e6
    names = [shadow.name for shadow in shadows.all]
    arms = simulate(plan, names, replicas=8, engine=engine, keys=True, seed=seed)
    rows = []
    for shadow, arm in zip(shadows.all, arms, strict=True):
        total = shadow.rolling.total
        assert arm.hit_rate is not None
        rows.append(
            Row(
                workload,
                shadow.name,
                100 * total.predicted / total.prompt,
                100 * arm.hit_rate,
                each,
            )
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    print(f"{'workload':10}{'policy':18}{'predicted':>10}{'real':>8}{'off':>7}{'us/request':>12}")
    for workload, rate in CASES:
        for row in measure(workload, rate, args.requests, args.seed):
            rows.append(row)
            off = row.predicted - row.real
            print(
                f"{row.workload:10}{row.policy:18}{row.predicted:9.1f}%{row.real:7.1f}%"
                f"{off:+7.1f}{row.us_a_request:12.1f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps([msgspec.to_builtins(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
