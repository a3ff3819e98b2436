"""Arms in turn under the same arrivals, each with a fresh fleet and a fresh gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import httpx
import msgspec

from loadgen.client.driver import Progress
from loadgen.live.engines import (
    counted,
    must_answer,
    must_serve,
    must_tell_events,
    read_counters,
    shown_names,
)
from loadgen.live.findings import Found, Run, Runs, answered, counts, find, only_cut, summary
from loadgen.live.gateway import EXACT_ARMS, raised, read_reuse, start_gateway
from loadgen.live.processes import Children, free_ports, ready
from loadgen.live.run import Client, RunError, engine_of, first_model, play
from loadgen.results.conclusion import conclude
from loadgen.results.export import RunRecords
from loadgen.results.savings import Price
from loadgen.results.schema import Arm, Difference, Kind, Results
from loadgen.workloads.plan import Plan

DIRECT = "direct"
"""The arm without a gateway: the client itself takes the replicas in turn."""


FETCHED = (
    "with prefill and decode apart, the hit rate that clients see is that of the engines that "
    "answer, which count all that they fetched as cached; the hits' way as the gateway counts it "
    "has the tokens that nobody computed"
)


class Contender(msgspec.Struct, frozen=True):
    """One arm: a policy of our gateway, ``direct``, or a router that already runs at a URL."""

    name: str
    url: str = ""
    policy: str = ""
    """Where it is not the name."""
    prefill: int = 0
    """How many of the simulated replicas, the last ones, only prefill for the others."""


class FleetSpec(msgspec.Struct, frozen=True):
    """The replicas: simulated ones, started afresh for every arm, or running ones by URL."""

    simulated: int = 0
    arguments: tuple[str, ...] = ()
    """For the simulated replicas' command."""
    urls: tuple[str, ...] = ()
    reset: bool = True
    """Empty the running ones' prefix caches before each run."""
    gateway_arguments: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """What the replicas are called in results: those started here by number, as in a
        simulation, others by their URL."""
        return list(self.urls) or [f"replica-{slot}" for slot in range(self.simulated)]


class RunObserver(Protocol):
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


class Comparing:
    """A comparison under way. What it has found can be had at any time, so that nothing is lost
    when a later run fails or all is stopped."""

    def __init__(self, comparison: Comparison, stage: RunObserver) -> None:
        self._comparison = comparison
        self._stage = stage
        self._loads: list[tuple[float, Runs]] = []
        self.engine = ""
        """What the replicas that were named are, as far as they tell."""
        self.model = comparison.client.model

    async def run(self) -> None:
        """Run everything. Arms take turns within a repeat, and the order turns with the repeats, so
        that what drifts on the machine meets all of them. The first contender is the baseline.

        Raises ValueError for what cannot be compared, ChildError, RunError, TargetError; nothing
        that was started is left running."""
        comparison = self._comparison
        await _check(comparison)
        await self._look()
        for load, plan in comparison.plans:
            runs: Runs = {each.name: [] for each in comparison.contenders}
            self._loads.append((load, runs))
            for repeat in range(comparison.repeats):
                turn = repeat % len(comparison.contenders)
                order = [*comparison.contenders[turn:], *comparison.contenders[:turn]]
                seeded = msgspec.structs.replace(plan, seed=plan.seed + repeat)
                for contender in order:
                    shown = load if len(comparison.plans) > 1 else 0.0
                    self._stage.started(contender.name, shown, repeat, seeded)
                    run = Run()
                    runs[contender.name].append(run)
                    await _one(comparison, contender, seeded, self._stage, run)
                    self._stage.ended(summary(comparison, contender, [run], load))

    async def _look(self) -> None:
        """Find out what is asked."""
        client, urls = self._comparison.client, self._comparison.fleet.urls
        if not urls:
            return
        self.engine = await engine_of(urls[0], client.headers)
        if not self.model:
            self.model = await first_model(urls[0], client.headers)

    def records(self) -> Iterator[RunRecords]:
        """Of the runs that the arms are made of."""
        cut = only_cut(self._loads)
        for load, runs in self._loads:
            for name, own in runs.items():
                for repeat, run in enumerate(own):
                    if counts(run, cut=cut):
                        yield RunRecords(name, load, repeat, run.records)

    def found(self) -> Found:
        """What is known by now."""
        return find(self._comparison, self._loads)


async def _check(comparison: Comparison) -> None:
    """Whatever would end a comparison later. Raises ValueError (also TargetError) and RunError."""
    fleet, headers = comparison.fleet, comparison.client.headers
    own = [each.name for each in comparison.contenders if not each.url and each.name != DIRECT]
    exact = [name for name in own if name in EXACT_ARMS]
    if exact and fleet.simulated:
        raise ValueError(
            f"{exact[0]} cannot be compared on simulated replicas: a gateway in exact mode needs "
            "the engines' tokenizer, and these have none. Name vLLM engines with --replica, or run "
            "it in virtual time with the simulate command"
        )
    if fleet.urls:
        shown_names(fleet.urls, fleet.names)
    for contender in comparison.contenders:
        if contender.url:
            await must_answer(contender.url, headers)
    for url in fleet.urls:
        await (must_serve if own else must_answer)(url, headers)
        if exact and not any("exact-events" in given for given in fleet.gateway_arguments):
            await must_tell_events(url, headers)


async def _one(
    comparison: Comparison, contender: Contender, plan: Plan, stage: RunObserver, run: Run
) -> None:
    """One run of one arm, on replicas with empty caches. Fills in `run` as it goes."""
    fleet, headers = comparison.fleet, comparison.client.headers
    with Children() as children:
        replicas = list(fleet.urls)
        if fleet.simulated and not contender.url:
            replicas = await start_replicas(children, fleet.simulated, fleet.arguments)
        elif fleet.reset:
            run.warnings += await reset_caches(replicas)
        admin = ""
        if contender.url:
            urls = [contender.url]
        elif contender.name == DIRECT:
            urls = replicas
        else:
            answering = replicas[: len(replicas) - contender.prefill]
            gateway = await start_gateway(
                children,
                answering,
                contender.policy or contender.name,
                fleet.gateway_arguments,
                prefill=replicas[len(answering) :],
            )
            if contender.prefill:
                run.warnings.append(FETCHED)
            urls, admin = [gateway.url], gateway.admin
        # With `run`, a URL may be an engine's or a router's: an engine says so.
        asks_itself = not fleet.reset and await read_counters(urls, headers) is None
        # What answers of a router do not tell, its engines may.
        asked = fleet.urls if contender.url and contender.url not in fleet.urls else ()
        before = await read_counters(asked, headers)
        try:
            run.warnings += await play(
                plan,
                urls,
                comparison.client,
                stage.progress,
                names={} if asks_itself else shown_names(replicas, fleet.names),
                by_url=not asks_itself,
                records=run.records,
            )
        except RunError as error:
            raise RunError(f"{error}{children.said()}") from error
        children.check()
        if asked and not run.records.told_replicas:
            after = await read_counters(asked, headers)
            if before and after:
                run.counted = counted(fleet.names, before, after)
        if contender.url and not run.counted and not run.records.told_replicas:
            run.warnings += await _unnamed(contender.url, headers, run)
        if admin:
            if any(run.records.reason):
                run.warnings += raised(gateway.child.said())
            try:
                run.reuse = await read_reuse(admin)
            except httpx.HTTPError as error:
                run.warnings.append(f"the gateway's metrics could not be read: {error!r}")
    run.whole = True


async def _unnamed(url: str, headers: Mapping[str, str], run: Run) -> list[str]:
    """A warning when there is nothing by replica, unless the URL is an engine's own."""
    if not answered(run) or await read_counters([url], headers) is not None:
        return []
    return [
        "its answers do not name the replica, so there is nothing by replica; a Warmroute names it "
        "with its setting explain_headers (--explain-headers true)"
    ]


async def start_replicas(
    children: Children, count: int, arguments: Sequence[str] = ()
) -> list[str]:
    """Simulated replicas in one process, on loopback. Raises ChildError."""
    ports = free_ports(count)
    command = [sys.executable, "-m", "loadgen.cli.main", "replicas"]
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
    kind: Kind,
    axis: str = "",
    simulated: bool,
    description: str,
    settings: Mapping[str, str],
) -> Results:
    """Everything in the form that is written to files, with its conclusion."""
    return Results(
        kind=kind,
        workload=workload,
        arms=arms,
        axis=axis,
        simulated=simulated,
        description=description,
        settings=dict(settings),
        differences=found,
        warnings=warnings,
        conclusion=conclude(arms, found, axis),
    )
