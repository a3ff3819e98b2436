"""`warmroute-loadgen report` without results files: the page made anew."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import msgspec
from rich.console import Console

from loadgen.live.compare import results_of
from loadgen.reproduce.cases import ARMS, OURS, cases
from loadgen.reproduce.engines import FILE, read_engines
from loadgen.reproduce.page import write_page
from loadgen.reproduce.run import Outcome, run_cases
from loadgen.reproduce.verdict import METRICS, behind, rivals
from loadgen.results.schema import Results
from loadgen.show.plain import say

TRACE_VARIABLE = "LOADGEN_TRACE"
USUAL_TRACE = Path("../shared/traces/mooncake_conversation_first_half.jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` to a parser."""
    add = parser.add_argument
    add(
        "--trace",
        type=Path,
        help=f"the Mooncake trace (default ${TRACE_VARIABLE}, or {USUAL_TRACE} where it exists; "
        "without one its section says so)",
    )
    add(
        "--engines",
        type=Path,
        default=FILE,
        help="what was measured on real engines (default %(default)s; without it its section says "
        "so)",
    )
    add("--page", type=Path, default=Path("docs/design/results.md"), help="(default %(default)s)")
    add("--processes", type=int, default=2, help="at a time (default %(default)s)")
    add("--scale", type=float, default=1.0, help="times as many requests (default 1)")


def reproduce(args: argparse.Namespace, console: Console) -> Results:
    """Run all cases, write the page, and return every arm as one. Raises OSError and ValueError."""
    if args.processes < 1 or args.scale <= 0:
        raise ValueError("--processes must be at least 1, and --scale above 0")
    engines = read_engines(args.engines)
    chosen = cases(find_trace(args.trace), scale=args.scale)
    say(
        console, f"{len(chosen)} cases, {len(ARMS)} arms, {args.processes} processes; a few minutes"
    )

    def done(outcome: Outcome) -> None:
        ours = next(arm for arm in outcome.arms if arm.name == OURS)
        others = rivals(outcome.arms)
        said = ", ".join(f"{metric} {behind(ours, others, metric):+.1%}" for metric in METRICS)
        say(
            console,
            f"{outcome.case.name}: cache_aware to the best other: {said} "
            f"({outcome.seconds:.0f} s of processor time)",
        )

    outcomes = run_cases(chosen, ARMS, args.processes, done)
    write_page(outcomes, engines, args.page)
    say(console, f"wrote {args.page} and its charts")
    return as_results(outcomes)


def find_trace(named: Path | None) -> Path | None:
    """Where the trace is, or None. Raises OSError when one is named and is not there."""
    asked = named or (Path(found) if (found := os.environ.get(TRACE_VARIABLE)) else None)
    if asked is None:
        return USUAL_TRACE if USUAL_TRACE.is_file() else None
    if not asked.is_file():
        raise FileNotFoundError(f"no trace {asked}: give --trace a file that exists, or nothing")
    return asked


def as_results(outcomes: list[Outcome]) -> Results:
    """All cases in one, an arm being named CASE: ARM."""
    arms, found = [], []
    for outcome in outcomes:
        case = outcome.case
        for arm in outcome.arms:
            arm.name = f"{case.name}: {arm.name}"
            arms.append(arm)
        for each in outcome.against_best:
            renamed = msgspec.structs.replace(
                each,
                arm=f"{case.name}: {each.arm}",
                baseline=f"{case.name}: {each.baseline}",
                load=case.load,
            )
            found.append(renamed)
    results = results_of(
        "all",
        arms,
        found,
        [],
        kind="report",
        simulated=True,
        description="Every case of docs/design/results.md.",
        settings={},
    )
    results.conclusion = ""
    return results
