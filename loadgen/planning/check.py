"""The planned fleet run live at a small scale, beside what virtual time says of the same."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.engine import EngineParams, transfer_for
from loadgen.live.compare import Comparing, Comparison, Contender, FleetSpec, RunObserver
from loadgen.live.processes import run_async
from loadgen.planning.fleet import Fleet, Trial, scaled, trial_of
from loadgen.planning.objective import Objective
from loadgen.planning.report import Checked
from loadgen.results.schema import Reuse
from loadgen.simulate import ArmRun, arrangement, prepare, run_once
from loadgen.workloads import Arrivals, Plan, Session, Workload
from loadgen.workloads.draw import rng
from router.prompt.spans import SPANS

MOST_REPLICAS = 3
SECONDS = 30.0
_WAY = Reuse(0.0, 0.0, 0.0, 0.0, 0.0)


class Thinned:
    """A share of a workload's sessions, at their own times."""

    def __init__(self, workload: Workload, share: float) -> None:
        self._workload = workload
        self._share = share

    @property
    def name(self) -> str:
        """The workload's."""
        return self._workload.name

    @property
    def timed(self) -> bool:
        """As the workload's."""
        return self._workload.timed

    @property
    def group(self) -> int:
        """As the workload's."""
        return self._workload.group

    def sessions(self, seed: int) -> Iterator[Session]:
        """Drawn by the seed."""
        random = rng(seed, "thinned")
        for session in self._workload.sessions(seed):
            if random.random() < self._share:
                yield session


def checked(
    best: Fleet,
    params: EngineParams,
    preset: str,
    plan: Plan,
    objectives: list[Objective],
    stage: RunObserver,
) -> Checked:
    """Raises ChildError and RunError."""
    replicas = min(best.replicas, MOST_REPLICAS)
    share = replicas / best.replicas
    small = msgspec.structs.replace(best, replicas=replicas)
    seconds = min(plan.duration or SECONDS, SECONDS)
    less: Workload = plan.workload
    arrivals = plan.arrivals
    if share < 1:
        less, arrivals = _less(plan, share)
    smaller = msgspec.structs.replace(
        plan, workload=less, arrivals=arrivals, duration=seconds, warmup=0.0, finish=False
    )
    prepared = prepare(smaller, params.block_size, SPANS, keys=True)
    engines = [params] * replicas
    run = run_once(prepared, arrangement(best.policy), engines, seed=plan.seed)
    simulated = trial_of(small, [run], objectives)
    spec = FleetSpec(
        simulated=replicas,
        arguments=(
            "--preset",
            preset,
            "--num-blocks",
            str(params.num_blocks),
            *_tier(best, params),
        ),
    )
    comparing = Comparing(
        Comparison(contenders=[Contender(best.policy)], fleet=spec, plans=[(0.0, smaller)]), stage
    )
    run_async(comparing.run())
    (record,) = comparing.records()
    (arm,) = comparing.found().arms
    live: Trial = trial_of(small, [ArmRun(record.records, _WAY, 0, 0.0)], objectives)
    return Checked(replicas, share, simulated, live, arm.schedule.behind)


def _tier(best: Fleet, params: EngineParams) -> tuple[str, ...]:
    if not best.offload_gb:
        return ()
    speed = transfer_for(params).token_bytes / params.offload_token_seconds / 1e9
    return ("--offload-gb", str(best.offload_gb), "--offload-gb-per-s", str(speed))


def _less(plan: Plan, share: float) -> tuple[Workload, Arrivals]:
    """A share of the load: fewer sessions of a trace, rarer ones of what is made up."""
    if plan.workload.timed:
        return Thinned(plan.workload, share), plan.arrivals
    return plan.workload, scaled(plan, share).arrivals
