"""Runs the cases, a few at a time."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence

import msgspec

from loadgen.engine import preset
from loadgen.reproduce.cases import OURS, PRESET, REPLICAS, Case
from loadgen.reproduce.verdict import METRICS, best
from loadgen.results.bootstrap import differences
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Difference
from loadgen.simulate import arrangement, prepare, run_loop
from router.prompt.spans import SPANS


class Outcome(msgspec.Struct, frozen=True):
    """What one case gave."""

    case: Case
    arms: list[Arm]
    against_best: list[Difference]
    """For each of METRICS: OURS minus the best other arm."""
    seconds: float
    """It took, of processor time."""


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
    params = [preset(PRESET)] * REPLICAS
    runs: dict[str, list[Records]] = {name: [] for name in names}
    for seed in case.seeds:
        prepared = prepare(case.plan(seed), params[0].block_size, SPANS, keys=case.keys)
        for name in names:
            loop = run_loop(prepared, arrangement(name), params, seed=seed)
            runs[name].append(loop.records)
    arms = [_summary(name, runs[name], case.load) for name in names]
    against = [
        difference
        for metric in METRICS
        for rival in [best([arm for arm in arms if arm.name != OURS], metric)]
        for difference in differences((rival.name, runs[rival.name]), (OURS, runs[OURS]))
        if difference.metric == metric
    ]
    return Outcome(case, arms, against, time.process_time() - began)


def _summary(name: str, runs: Sequence[Records], load: float) -> Arm:
    replicas = tuple(f"replica-{slot}" for slot in range(REPLICAS))
    return summarise(name, *runs, replicas=replicas, load=load)
