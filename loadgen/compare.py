"""Arms in turn under the same arrivals, each with a fresh fleet and a fresh gateway."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

import httpx
import msgspec

from loadgen.bootstrap import differences
from loadgen.client.driver import Progress
from loadgen.conclusion import conclude
from loadgen.gateway import read_reuse, start_gateway
from loadgen.metrics import summarise
from loadgen.processes import Children, free_ports, ready
from loadgen.records import Records, joined
from loadgen.results import Arm, Difference, Results, Reuse
from loadgen.run import Client, RunError, play
from loadgen.savings import Price, savings
from loadgen.workloads.plan import Plan

DIRECT = "direct"
"""The arm without a gateway: the client itself takes the replicas in turn."""


class Contender(msgspec.Struct, frozen=True):
    """One arm: a policy of our gateway, ``direct``, or a router that already runs at a URL."""

    name: str
    url: str = ""


class FleetSpec(msgspec.Struct, frozen=True):
    """The replicas: simulated ones, started afresh for every arm, or running ones by URL."""

    simulated: int = 0
    arguments: tuple[str, ...] = ()
    """For the simulated replicas' command."""
    urls: tuple[str, ...] = ()
    reset: bool = True
    """Empty the running ones' prefix caches before each run."""
    gateway_arguments: tuple[str, ...] = ()


class Stage(Protocol):
    """Who watches a comparison."""

    def started(self, arm: str, load: float, repeat: int, plan: Plan) -> None:
        """An arm's run begins."""

    def progress(self, progress: Progress) -> None:
        """It goes on."""

    def ended(self, arm: Arm) -> None:
        """It is over; the summary is of this run alone."""


class Comparison(msgspec.Struct, kw_only=True):
    """What to compare, and how often."""

    contenders: Sequence[Contender]
    fleet: FleetSpec
    plans: Sequence[tuple[float, Plan]]
    """(load, plan): one for a comparison, several for a sweep."""
    client: Client = Client()
    repeats: int = 1
    objectives_ms: Mapping[str, float] = {}
    price: Price = Price()


class _Run(msgspec.Struct):
    records: Records
    warnings: list[str]
    reuse: Reuse | None


async def compare(
    comparison: Comparison, stage: Stage
) -> tuple[list[Arm], list[Difference], list[str]]:
    """Run everything. Arms take turns within a repeat, and the order turns with the repeats, so
    that what drifts on the machine meets all of them. The first contender is the baseline.

    Raises ChildError, RunError, TargetError; nothing that was started is left running."""
    arms: list[Arm] = []
    found: list[Difference] = []
    warnings: list[str] = []
    for load, plan in comparison.plans:
        runs: dict[str, list[_Run]] = {each.name: [] for each in comparison.contenders}
        for repeat in range(comparison.repeats):
            turn = repeat % len(comparison.contenders)
            order = [*comparison.contenders[turn:], *comparison.contenders[:turn]]
            seeded = msgspec.structs.replace(plan, seed=plan.seed + repeat)
            for contender in order:
                shown = load if len(comparison.plans) > 1 else 0.0
                stage.started(contender.name, shown, repeat, seeded)
                run = await _one(comparison, contender, seeded, stage)
                runs[contender.name].append(run)
                stage.ended(_summary(comparison, contender.name, [run], load))
                warnings += [f"{contender.name}: {text}" for text in run.warnings]
        summaries = [_summary(comparison, name, each, load) for name, each in runs.items()]
        base, *others = summaries
        for arm in others:
            arm.savings = savings(base, arm, comparison.price)
        arms += summaries
        found += _differences(runs)
    late = [arm.name for arm in arms if arm.schedule.behind]
    if late:
        warnings.append(
            f"the load generator fell behind its schedule ({', '.join(late)}): the load was lower "
            "than asked for; use a lower rate or a faster machine"
        )
    if comparison.repeats == 1 and found:
        warnings.append(
            "one run of each arm: the intervals do not cover what changes from run to run "
            "(use --repeats)"
        )
    return arms, found, list(dict.fromkeys(warnings))


def _differences(runs: Mapping[str, Sequence[_Run]]) -> list[Difference]:
    (base, base_runs), *others = runs.items()
    found: list[Difference] = []
    for name, own in others:
        pair = (base, [run.records for run in base_runs]), (name, [run.records for run in own])
        found += differences(*pair)
    return found


def _summary(comparison: Comparison, name: str, runs: Sequence[_Run], load: float) -> Arm:
    arm = summarise(
        name,
        joined([run.records for run in runs]),
        objectives_ms=comparison.objectives_ms,
        load=load,
    )
    arm.repeats = len(runs)
    counted = [run.reuse for run in runs if run.reuse is not None]
    if counted:
        arm.reuse = Reuse(
            *(sum(getattr(each, field) for each in counted) for field in Reuse.__struct_fields__)
        )
    return arm


async def _one(comparison: Comparison, contender: Contender, plan: Plan, stage: Stage) -> _Run:
    """One run of one arm, on replicas with empty caches."""
    fleet = comparison.fleet
    warnings: list[str] = []
    with Children() as children:
        replicas = list(fleet.urls)
        if fleet.simulated and not contender.url:
            replicas = await start_replicas(children, fleet.simulated, fleet.arguments)
        elif fleet.reset:
            warnings += await reset_caches(replicas)
        admin = ""
        if contender.url:
            urls = [contender.url]
        elif contender.name == DIRECT:
            urls = replicas
        else:
            gateway = await start_gateway(
                children, replicas, contender.name, fleet.gateway_arguments
            )
            urls, admin = [gateway.url], gateway.admin
        try:
            records, said = await play(plan, urls, comparison.client, stage.progress)
        except RunError as error:
            raise RunError(f"{error}{children.said()}") from error
        children.check()
        reuse = None
        if admin:
            try:
                reuse = await read_reuse(admin)
            except httpx.HTTPError as error:
                warnings.append(f"the gateway's metrics could not be read: {error!r}")
    return _Run(records, warnings + said, reuse)


async def start_replicas(
    children: Children, count: int, arguments: Sequence[str] = ()
) -> list[str]:
    """Simulated replicas in one process, on loopback. Raises ChildError."""
    ports = free_ports(count)
    command = [sys.executable, "-m", "loadgen.cli", "replicas"]
    command += ["--count", str(count), "--port", str(ports[0])]
    child = children.start("simulated replicas", [*command, *arguments])
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    for url in urls:
        await ready(f"{url}/health", [child])
    return urls


async def reset_caches(replicas: Sequence[str]) -> list[str]:
    """Empty real engines' prefix caches between arms. Returns a warning for each that would not."""
    warnings = []
    async with httpx.AsyncClient(timeout=30.0, trust_env=False) as client:
        for url in replicas:
            try:
                response = await client.post(f"{url.rstrip('/')}/reset_prefix_cache")
            except httpx.HTTPError as error:
                raise RunError(
                    f"{url} does not answer ({type(error).__name__}): is it up?"
                ) from error
            if response.status_code != 200:
                warnings.append(
                    f"{url} did not empty its prefix cache ({response.status_code}): arms that run "
                    "later find it warm; start vLLM with VLLM_SERVER_DEV_MODE=1"
                )
    return warnings


def results_of(
    workload: str,
    arms: list[Arm],
    found: list[Difference],
    warnings: list[str],
    *,
    kind: str,
    simulated: bool,
    description: str,
    settings: Mapping[str, str],
) -> Results:
    """Everything in the form that is written to files, with its conclusion."""
    return Results(
        kind=kind,
        workload=workload,
        arms=arms,
        simulated=simulated,
        description=description,
        settings=dict(settings),
        differences=found,
        warnings=warnings,
        conclusion=conclude(arms, found),
    )
