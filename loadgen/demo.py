"""The demo: agents in front of simulated replicas, first by turns, then by what each replica has
cached.

Nothing here favours an outcome: the load is what keeps the replicas moderately busy when requests
go round robin, every arm gets the same sessions, and the last line is computed from what was
measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadgen.engine import preset
from loadgen.live.compare import Comparing, Comparison, Contender, FleetSpec, results_of
from loadgen.live.processes import ChildError, run_async
from loadgen.live.run import RunError
from loadgen.results.savings import Price
from loadgen.results.schema import write_json
from loadgen.show.picture import write_svg
from loadgen.show.report.page import write_html
from loadgen.show.tables import show
from loadgen.show.terminal import Screen
from loadgen.workloads import Plan, Poisson, make
from loadgen.workloads.arrivals import mean_steps

REPLICAS = 4
RATE = 20.0
SECONDS = 40.0
WARMUP = 10.0
SEED = 7
PRESET = "32b-2xh100"
GPUS = 2
AGENTS = {
    # Tasks short enough that the load is steady after the warm-up.
    "steps": "5",
    "resumed": "0",
    "tool_pause": "0.5",
    "output_tokens": "50",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0 when it ran, whatever it found; 1 when it could not; 130 on
    Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.demo", description=_first_line())
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second, on average")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of arrivals, for each arm")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path, help="also write the results there")
    parser.add_argument("--html", type=Path, help="also write a report there")
    parser.add_argument("--svg", type=Path, help="also write a picture of the final tables there")
    options = parser.parse_args(arguments)
    console = Console()
    workload = make("agent", AGENTS)
    plan = Plan(
        workload,
        Poisson(options.rate),
        seed=options.seed,
        duration=options.seconds,
        warmup=min(WARMUP, options.seconds / 2),
    )
    comparison = Comparison(
        contenders=[Contender("round_robin"), Contender("cache_aware")],
        fleet=FleetSpec(simulated=options.replicas, arguments=("--preset", PRESET)),
        plans=[(0.0, plan)],
        price=Price(preset(PRESET).prefill_rate, GPUS),
    )
    tasks = options.rate / mean_steps(workload, options.seed)
    description = (
        f"{options.replicas} simulated vLLM replicas (a timing model of {PRESET}, no GPU) behind "
        "the real gateway, over HTTP. Agents with shared tools and system prompts, growing "
        f"histories and pauses: {tasks:.1f} new tasks a second for {options.seconds:.0f} s, of "
        f"which the first {plan.warmup:.0f} are not counted. Every arm gets the same tasks at the "
        "same times and starts with empty caches. A step is sent when the one before it has been "
        "answered, so an arm that answers sooner gets further in its tasks in the same time: the "
        "numbers of requests need not be equal."
    )
    console.print(description, highlight=False, soft_wrap=True)
    try:
        with Screen(console) as screen:
            comparing = Comparing(comparison, screen)
            run_async(comparing.run())
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    except (ChildError, RunError) as error:
        console.print(f"The demo could not run: {error}", style="red", highlight=False)
        return 1
    results = results_of(
        "agent",
        *comparing.found(),
        kind="compare",
        simulated=True,
        description=description,
        settings={"rate": f"{options.rate:g}", "seed": str(options.seed), **AGENTS},
    )
    if options.json:
        write_json(results, options.json)
    if options.html:
        write_html(results, options.html)
    if options.svg:
        write_svg(results, options.svg, "make demo")
    results.description = ""  # already on the screen
    show(results, console)
    return 0


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
