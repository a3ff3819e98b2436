"""The demo: agents in front of simulated replicas, first by turns, then by what each replica has
cached.

Nothing here favours an outcome: the load is what keeps the replicas moderately busy when requests
go round robin, every arm gets the same sessions, and the last lines are computed from what was
measured. The same sessions are played twice. In virtual time, whose numbers are the same on every
machine, and live, with the real gateway over HTTP. A busy or slow machine adds its own time to
every live answer; where it cannot keep up, that is said, and the live numbers are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs
from rich.console import Console

from loadgen.cli.parser import Parser
from loadgen.engine import preset
from loadgen.live.compare import (
    Comparing,
    Comparison,
    Contender,
    FleetSpec,
    RunObserver,
    results_of,
)
from loadgen.live.processes import ChildError, run_async
from loadgen.live.run import RunError
from loadgen.made import made
from loadgen.results.bootstrap import against_first
from loadgen.results.savings import Price, savings
from loadgen.results.schema import Arm, Difference, write_json
from loadgen.show.picture import write_svg
from loadgen.show.plain import say
from loadgen.show.report.page import write_html
from loadgen.show.tables import show
from loadgen.show.terminal import Screen
from loadgen.simulate import arm_of, arrangement, prepare, run_once
from loadgen.workloads import Plan, Poisson, make
from loadgen.workloads.arrivals import mean_steps
from router.prompt.spans import SPANS

REPLICAS = 4
RATE = 20.0
SECONDS = 11.0
WARMUP = 2.0
SEED = 7
POLICIES = ("round_robin", "cache_aware")
PRESET = "32b-2xh100"
GPUS = 2
LIVE = "live: "
"""In front of the arms that were run over HTTP."""
SLOWER = 1.5
"""Live answers that take so many times as long as in virtual time are the machine's doing."""
NEXT = (
    ("your own traffic", "warmroute-loadgen simulate --workload YOUR_TRACE_OR_LOG"),
    (
        "what it would take",
        "warmroute-loadgen plan --workload agent --rate 20 --slo ttft_p90=500ms",
    ),
    (
        "your own engines",
        "warmroute serve --replica http://ENGINE_1:8000 --replica http://ENGINE_2:8000",
    ),
)
"""What to do after the demo: what for, and the command."""
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
    parser = Parser(prog="python -m loadgen.demo", description=_first_line())
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
    tasks = options.rate / mean_steps(workload, options.seed)
    description = (
        f"{options.replicas} simulated vLLM replicas (a timing model of {PRESET}, no GPU) behind "
        "the real gateway, over HTTP. Agents with shared tools and system prompts, growing "
        f"histories and pauses: {tasks:.1f} new tasks a second for {options.seconds:.0f} s. The "
        f"first {plan.warmup:.0f} s warm the caches up: their requests are sent, and not counted "
        "in the results. Every arm gets the same tasks at the "
        "same times and starts with empty caches. A step is sent when the one before it has been "
        "answered, so an arm that answers sooner gets further in its tasks in the same time: the "
        "numbers of requests need not be equal."
    )
    say(console, description, soft_wrap=False)
    virtual, certain = in_virtual_time(plan, options.replicas)
    try:
        with Screen(console) as screen:
            live, warnings, busy = in_real_time(plan, options.replicas, virtual, screen)
    except KeyboardInterrupt:
        say(console, "Stopped; nothing is left running.")
        return 130
    except (ChildError, RunError) as error:
        say(console, f"The demo could not run: {error}", "red", soft_wrap=False)
        return 1
    shown = [] if busy else [structs.replace(arm, name=LIVE + arm.name) for arm in live]
    results = results_of(
        "agent",
        [*virtual, *shown],
        certain,
        [] if busy else warnings,
        kind="compare",
        simulated=True,
        description=description,
        settings={"rate": f"{options.rate:g}", "seed": str(options.seed), **AGENTS},
    )
    results.made = made("python -m loadgen.demo", arguments)
    results.conclusion = f"{gain(*virtual)} {busy or _live(live)}"
    if options.json:
        write_json(results, options.json)
    if options.html:
        write_html(results, options.html)
    if options.svg:
        write_svg(results, options.svg, "make demo")
    results.description = ""  # already on the screen
    show(results, console, soft_wrap=False, brief=True)
    say(console, "Next:", "bold")
    for what, command in NEXT:
        say(console, f"  {what + ':':<19} {command}")
    return 0


def in_real_time(
    plan: Plan, replicas: int, virtual: Sequence[Arm], screen: RunObserver
) -> tuple[list[Arm], list[str], str]:
    """The arms, warnings, and why they say more of this machine than of routing, where they do:
    the arms that are left would say no more, and are not run. Raises ChildError and RunError."""
    price = Price(preset(PRESET).prefill_rate, GPUS)
    live: list[Arm] = []
    warnings: list[str] = []
    for name in POLICIES:
        comparison = Comparison(
            contenders=[Contender(name)],
            fleet=FleetSpec(simulated=replicas, arguments=("--preset", PRESET)),
            plans=[(0.0, plan)],
        )
        comparing = Comparing(comparison, screen)
        run_async(comparing.run())
        (arm,), _, said = comparing.found()
        if live:
            arm.savings = savings(live[0], arm, price)
        live.append(arm)
        warnings += said
        if busy := too_busy(virtual[: len(live)], live):
            return live, warnings, busy
    return live, warnings, ""


def in_virtual_time(plan: Plan, replicas: int) -> tuple[list[Arm], list[Difference]]:
    """What the same sessions come to without sockets and clocks."""
    engine = preset(PRESET)
    prepared = prepare(plan, engine.block_size, SPANS, keys=True)
    runs = {
        name: run_once(prepared, arrangement(name), [engine] * replicas, seed=plan.seed)
        for name in POLICIES
    }
    arms = [arm_of(name, [run], replicas=replicas) for name, run in runs.items()]
    for arm in arms[1:]:
        arm.savings = savings(arms[0], arm, Price(engine.prefill_rate, GPUS))
    return arms, against_first({name: [run.records] for name, run in runs.items()})


def gain(base: Arm, arm: Arm) -> str:
    """In a sentence, whichever way it points."""
    before, after = base.ttft_ms.mean or 0.0, arm.ttft_ms.mean or 0.0
    times = before / after if after else 1.0
    sooner = f"{times:.1f} times sooner" if times >= 1 else f"{1 / times:.1f} times later"
    return (
        f"In virtual time, the same on every machine: with {arm.name} the first token comes "
        f"{sooner} on average ({before:,.0f} ms to {after:,.0f} ms), since {arm.hit_rate or 0:.0%} "
        f"of the prompt tokens are reused instead of {base.hit_rate or 0:.0%} "
        f"({arm.upper_bound:.0%} is possible)."
    )


def too_busy(virtual: Sequence[Arm], live: Sequence[Arm]) -> str:
    """Why the live numbers say more of this machine than of routing; empty where they do not."""
    if any(arm.schedule.behind for arm in live):
        return (
            "Live, on this machine: it could not send requests when they were due, so its times "
            "are left out."
        )
    for before, now in zip(virtual, live, strict=True):
        expected, took = before.ttft_ms.mean, now.ttft_ms.mean
        if expected is None or took is None or took > SLOWER * expected:
            return (
                f"Live, on this machine: too busy or too slow to tell, since the first token of "
                f"{now.name} took {took or 0.0:,.0f} ms on average instead of "
                f"{expected or 0.0:,.0f} ms, so its times are left out."
            )
    return ""


def _live(live: Sequence[Arm]) -> str:
    """The live gain in a sentence."""
    base, arm = live
    hits = ""
    if base.hit_rate is not None and arm.hit_rate is not None:
        hits = f"{base.hit_rate:.0%} and {arm.hit_rate:.0%} of the prompt tokens reused, "
    return (
        f"Live, on this machine, through the real gateway: {hits}{base.ttft_ms.mean or 0.0:,.0f} "
        f"and {arm.ttft_ms.mean or 0.0:,.0f} ms to the first token on average."
    )


def _first_line() -> str:
    return (__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
