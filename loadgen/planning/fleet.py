"""A fleet that could be bought, and what it does under a workload, in virtual time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from loadgen.engine import EngineParams
from loadgen.planning.objective import Measured, Objective, broken, measured
from loadgen.results.columns import Columns
from loadgen.simulate import ArmRun, Prepared, arrangement, coarser, prepare, run_once
from loadgen.workloads import Closed, Fixed, Plan, Poisson, Ramp, Traced
from router.prompt.spans import SPANS

BLOCK_TOKENS = 64
"""Engines are simulated with blocks of so many tokens: four times as fast as with 16."""
_KEPT = 4
"""Prepared workloads that are kept."""


class Fleet(msgspec.Struct, frozen=True):
    """Replicas of one kind behind routers with one policy."""

    preset: str
    replicas: int
    kv: float = 1.0
    """KV cache of a replica, in those of the preset."""
    policy: str = "cache_aware"
    routers: int = 1
    gpus: int = 1
    """Of one replica."""
    offload_gb: float = 0.0
    """A replica's KV cache tier in CPU memory, 10^9 bytes."""

    @property
    def all_gpus(self) -> int:
        """Of all replicas."""
        return self.replicas * self.gpus

    def named(self) -> str:
        """In words."""
        parts = [f"{self.replicas} x {self.preset}", self.policy]
        if self.kv != 1.0:
            parts.append(f"KV cache x {self.kv:g}")
        if self.offload_gb:
            parts.append(f"offload {self.offload_gb:g} GB")
        if self.routers > 1:
            parts.append(f"{self.routers} routers")
        return ", ".join(parts)


class Trial(msgspec.Struct, frozen=True):
    """What a fleet did."""

    fleet: Fleet
    measured: list[Measured]
    broken: list[str]
    """Objectives that it does not hold, by name."""
    hit_rate: float | None
    upper_bound: float
    requests_per_s: float
    refused: int
    """Requests longer than an engine takes."""
    requests: int

    @property
    def holds(self) -> bool:
        """All objectives, with their intervals."""
        return not self.broken


class Trials:
    """Runs fleets; prepared workloads are kept, since every fleet gets the same."""

    def __init__(self, plan: Plan, objectives: Sequence[Objective], repeats: int) -> None:
        self._plan = plan
        self.objectives = objectives
        self._repeats = repeats
        self._prepared: OrderedDict[tuple[int, float, int], Prepared] = OrderedDict()
        self.ran = 0

    def run(self, fleet: Fleet, params: EngineParams, load: float = 1.0) -> Trial:
        """At so many times the plan's load."""
        engine = sized(params, fleet.kv)
        runs = [
            run_once(
                self._prepare(self._plan.seed + repeat, load, engine.block_size),
                arrangement(fleet.policy),
                [engine] * fleet.replicas,
                routers=fleet.routers,
                seed=self._plan.seed + repeat,
            )
            for repeat in range(self._repeats)
        ]
        self.ran += 1
        return trial_of(fleet, runs, self.objectives)

    def prepared(self, block_tokens: int) -> Prepared:
        """The plan's first seed."""
        return self._prepare(self._plan.seed, 1.0, block_tokens)

    def _prepare(self, seed: int, load: float, block_tokens: int) -> Prepared:
        key = (seed, load, block_tokens)
        found = self._prepared.get(key)
        if found is None:
            plan = msgspec.structs.replace(scaled(self._plan, load), seed=seed)
            found = self._prepared[key] = prepare(plan, block_tokens, SPANS, keys=True)
            while len(self._prepared) > _KEPT * self._repeats:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return found


def trial_of(fleet: Fleet, runs: Sequence[ArmRun], objectives: Sequence[Objective]) -> Trial:
    """From its runs, at least one."""
    records = [run.records for run in runs]
    found = measured(records, objectives)
    columns = [Columns(each) for each in records]
    told = sum(int(each.prompt[each.told].sum()) for each in columns)
    cached = sum(int(each.cached[each.told].sum()) for each in columns)
    tokens = sum(int(each.tokens[each.ok].sum()) for each in columns)
    possible = sum(int(each.possible[each.ok].sum()) for each in columns)
    seconds = sum(float(each.end[each.ok].max()) for each in columns if each.ok.any())
    done = sum(int(each.ok.sum()) for each in columns)
    return Trial(
        fleet=fleet,
        measured=found,
        broken=[each.name for each in broken(found, objectives)],
        hit_rate=cached / told if told else None,
        upper_bound=possible / tokens if tokens else 0.0,
        requests_per_s=done / seconds if seconds else 0.0,
        refused=sum(len(each) for each in records) - done,
        requests=sum(len(each) for each in records),
    )


def sized(params: EngineParams, kv: float) -> EngineParams:
    """With so many times the KV cache, and blocks large enough to be simulated quickly."""
    blocks = max(2, round((params.num_blocks - 1) * kv) + 1)
    params = msgspec.structs.replace(params, num_blocks=blocks)
    return coarser(params, BLOCK_TOKENS) if params.block_size < BLOCK_TOKENS else params


def scaled(plan: Plan, load: float) -> Plan:
    """The same plan under so many times the load."""
    if load == 1.0:
        return plan
    arrivals = plan.arrivals
    more: Poisson | Fixed | Ramp | Traced | Closed
    if isinstance(arrivals, Traced):
        more = Traced(arrivals.speed * load)
    elif isinstance(arrivals, Closed):
        more = Closed(max(1, round(arrivals.concurrency * load)), arrivals.spread)
    elif isinstance(arrivals, Ramp):
        more = Ramp(arrivals.low * load, arrivals.high * load, arrivals.seconds)
    else:
        more = type(arrivals)(arrivals.rate * load)
    return msgspec.structs.replace(plan, arrivals=more)
