"""The simulate command: the options of a comparison, answered in virtual time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import msgspec

from loadgen import options as opts
from loadgen.compare import results_of
from loadgen.engine import EngineParams
from loadgen.replicas.named import named_engine
from loadgen.results import Arm, Results
from loadgen.savings import savings
from loadgen.simulate import simulate
from loadgen.workloads import Closed, Plan
from router.units import parse_duration


def simulated_results(args: argparse.Namespace) -> Results:
    """Run what the options ask for. Raises OptionsError, ValueError and OSError."""
    params = named_engine(args.preset)
    if args.num_blocks:
        params = msgspec.structs.replace(params, num_blocks=args.num_blocks)
    names = list(filter(None, args.policies.split(",")))
    count = args.replicas or 4
    plans = opts.plans_from(args)
    arms: list[Arm] = []
    for load, plan in plans:
        _check(plan)
        found = simulate(
            plan,
            names,
            replicas=count,
            engine=params,
            routers=args.routers,
            sync=_sync(args.sync),
            seed=args.seed,
            keys=True,
            objectives_ms=opts.objectives_from(args),
        )
        for arm in found:
            arm.load = load
            if arm is not found[0]:
                arm.savings = savings(found[0], arm, opts.price_from(args, simulated=True))
        arms += found
    return results_of(
        args.workload,
        arms,
        [],
        _warnings(arms, params),
        kind="simulate" if len(plans) == 1 else "sweep",
        simulated=True,
        description=f"{count} replicas ({params.name}: {params.origin}), in virtual time.",
        settings=opts.settings_from(args),
    )


def _warnings(arms: Sequence[Arm], params: EngineParams) -> list[str]:
    refused = max((arm.errors.get("too_long", 0) for arm in arms), default=0)
    if not refused:
        return []
    return [
        f"{refused:,} requests of an arm were refused: longer, answer included, than the "
        f"{params.longest:,} tokens an engine takes ({params.name}); make them shorter (agent: "
        "--set most_tokens=N) or take another --preset"
    ]


def _check(plan: Plan) -> None:
    if isinstance(plan.arrivals, Closed) and not plan.requests:
        raise opts.OptionsError("a simulated closed loop needs --requests to end")


def _sync(text: str) -> float | None:
    if text in ("never", "none"):
        return None
    try:
        return parse_duration(text)
    except ValueError:
        why = f"--sync {text!r}: write a duration such as 20ms, or none"
        raise opts.OptionsError(why) from None
