"""Runs the cases, a few at a time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence

import msgspec

from loadgen.reproduce.cases import OURS, POOLED, Case
from loadgen.reproduce.fleets import pooled
from loadgen.reproduce.verdict import METRICS, best, rivals
from loadgen.results.bootstrap import differences
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Difference
from loadgen.simulate import arrangement, prepare, run_loop
from router.prompt.spans import SPANS


class Outcome(msgspec.Struct, frozen=True):
    """The results of one case."""

    case: Case
    arms: list[Arm]
    against_best: list[Difference]
    """For each of METRICS: OURS minus the best other arm."""
    seconds: float
    """CPU seconds that the case took."""


def run_cases(
    cases: Sequence[Case],
    arms: Sequence[str],
    processes: int,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Outcomes in the order of the cases. ``done`` is called for each as it ends."""
    found: dict[str, Outcome] = {}
    # The trace and the highest loads take longest.
    order = sorted(cases, key=lambda case: (case.traced, case.requests, case.load), reverse=True)
    work = [(case, tuple(arms)) for case in order]
    with multiprocessing.get_context("spawn").Pool(processes, _until_ended) as pool:
        for outcome in pool.imap_unordered(run_case, work):
            found[outcome.case.name] = outcome
            done(outcome)
    return [found[case.name] for case in cases]


def _until_ended() -> None:
    """Ctrl-C reaches every process of the terminal; we end the others ourselves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_case(work: tuple[Case, Sequence[str]]) -> Outcome:
    """Every arm over every seed; the same arguments give the same outcome but for its seconds."""
    case, names = work
    began = time.process_time()
    fleet = case.fleet
    engines = fleet.engines
    runs: dict[str, list[Records]] = {name: [] for name in names}
    for seed in case.seeds:
        prepared = prepare(case.plan(seed), engines[0].block_size, SPANS, keys=case.keys)
        changes = fleet.changes(prepared.sessions[-1][0])
        for name in names:
            if name == POOLED:
                one = [pooled(fleet.engine, fleet.replicas)]
                loop = run_loop(prepared, arrangement("round_robin"), one, seed=seed)
            else:
                loop = run_loop(prepared, arrangement(name), engines, seed=seed, changes=changes)
            runs[name].append(loop.records)
    arms = [_summary(name, runs[name], case) for name in names]
    rival = {metric: best(rivals(arms), metric).name for metric in METRICS}
    found = {
        name: {each.metric: each for each in differences((name, runs[name]), (OURS, runs[OURS]))}
        for name in sorted(set(rival.values()))
    }
    against = [found[name][metric] for metric, name in rival.items()]
    return Outcome(case, arms, against, time.process_time() - began)


def _summary(name: str, runs: Sequence[Records], case: Case) -> Arm:
    replicas = 1 if name == POOLED else case.fleet.replicas
    names = tuple(f"replica-{slot}" for slot in range(replicas))
    return summarise(name, *runs, replicas=names, load=case.load)
