"""The plan command: the cheapest fleet that holds objectives."""

from __future__ import annotations

import argparse
from itertools import product

import msgspec
from rich.console import Console

from loadgen.cli import options as opts
from loadgen.cli.preflight import check_policies
from loadgen.cli.values import (
    OptionsError,
    amounts,
    count,
    counts,
    names,
    positive,
    positives,
    sentence,
)
from loadgen.engine.presets import GPUS
from loadgen.live.compare import DIRECT, RunObserver
from loadgen.planning.check import checked
from loadgen.planning.fleet import Trial, Trials, sized
from loadgen.planning.objective import parse_objectives
from loadgen.planning.report import Choice, Cost, PlanFound
from loadgen.planning.search import Answer, Option, breaking, fewest
from loadgen.replicas.named import WHAT, named_engine
from loadgen.workloads import Closed

MOST_REPLICAS = 64
REPEATS = 3
DESCRIPTION = (
    "In virtual time, with a model of the engines: an objective is held when the upper end of its "
    "95% interval, over {repeats} seeds and their sessions, is. Separate prefill engines are not "
    "modelled."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    parser.add_argument(
        "--slo",
        required=True,
        metavar="NAME=TIME,...",
        help="what must be held, such as ttft_p90=2s,tpot_p90=50ms (ttft, tpot, e2e; p50 to p99)",
    )
    parser.add_argument(
        "--preset",
        default=opts.PRESET,
        metavar="NAME|FILE,...",
        help=f"engines to choose from: {WHAT} (default %(default)s)",
    )
    parser.add_argument(
        "--kv-memory",
        default="1",
        metavar="TIMES,...",
        help="KV caches to choose from, in those of the preset (default 1)",
    )
    parser.add_argument(
        "--offload-gb",
        default="0",
        metavar="GB,...",
        help="KV cache tiers in CPU memory to choose from, 10^9 bytes; 0: none (default 0)",
    )
    opts.add_offload_speed(parser)
    parser.add_argument(
        "--policies",
        default="cache_aware",
        metavar="NAME,...",
        help="to choose from (default %(default)s)",
    )
    parser.add_argument(
        "--routers", default="1", metavar="N,...", help="to choose from (default 1)"
    )
    parser.add_argument("--most-replicas", type=count(), default=MOST_REPLICAS, metavar="N")
    parser.add_argument(
        "--repeats", type=count(), default=REPEATS, metavar="N", help="seeds of each"
    )
    parser.add_argument("--gpus", type=count(), help="of one replica (default: the preset's)")
    parser.add_argument(
        "--gpu-hour", type=positive, metavar="PRICE", help="of one GPU for one hour"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the planned fleet live for half a minute with at most 3 simulated replicas",
    )


def planned(args: argparse.Namespace, progress: Console, stage: RunObserver) -> PlanFound:
    """Search. Raises ValueError for options that make no sense, and what a live check raises."""
    objectives = parse_objectives(args.slo)
    options = _options(args)
    _, plans = opts.plans_from(args, whole=True)
    if len(plans) > 1:
        raise OptionsError("a plan is for one load: give one --rate or --concurrency")
    plan = plans[0][1]
    if isinstance(plan.arrivals, Closed) and not plan.requests:
        raise OptionsError("a simulated closed loop needs --requests to end")
    opts.check_plans([(0.0, plan)])
    trials = Trials(plan, objectives, args.repeats)

    def watch(trial: Trial, load: float) -> None:
        times = f" at {load:.3g} times the load" if load != 1.0 else ""
        held = "holds" if trial.holds else f"breaks {', '.join(trial.broken)}"
        progress.print(f"{trial.fleet.named()}{times}: {held}", soft_wrap=True, highlight=False)

    answers = [(option, fewest(trials, option, args.most_replicas, watch)) for option in options]
    found = PlanFound(
        workload=args.workload,
        objectives=objectives,
        choices=sorted(
            (_choice(answer.best, args) for _, answer in answers if answer.best),
            key=_price,
        ),
        without=[
            f"{option.fleet(args.most_replicas).named()} does not hold "
            f"{', '.join(answer.tried[max(answer.tried)].broken)}"
            for option, answer in answers
            if answer.best is None
        ],
        around=[],
        breaking=None,
        warnings=[],
        description=" ".join(
            [
                DESCRIPTION.format(repeats=args.repeats),
                *map(sentence, opts.assumptions_from(plans)),
            ]
        ),
        settings=opts.settings_from(args),
    )
    best = found.best
    if best is None:
        return found
    option, answer = next(pair for pair in answers if pair[1].best is best.trial)
    found.around = [_choice(each, args) for each in _around(trials, option, answer)]
    found.breaking = breaking(trials, best.trial, option.params, watch)
    found.warnings = _warnings(best.trial)
    if args.check:
        engine = sized(option.params, option.kv)
        blocks = round(engine.cache_tokens / option.params.block_size) + 1
        params = msgspec.structs.replace(option.params, num_blocks=max(2, blocks))
        fleet = best.trial.fleet
        found.checked = checked(fleet, params, option.preset, plan, objectives, stage)
    return found


def _options(args: argparse.Namespace) -> list[Option]:
    policies = names(args.policies, "--policies")
    check_policies(policies)
    if DIRECT in policies:
        raise OptionsError(f"--policies: {DIRECT} is no gateway, so there is nothing to plan")
    presets = names(args.preset, "--preset")
    kvs = positives(args.kv_memory, "--kv-memory")
    routers = counts(args.routers, "--routers")
    found = []
    tiers = amounts(args.offload_gb, "--offload-gb")
    for preset, kv, tier, policy, many in product(presets, kvs, tiers, policies, routers):
        try:
            params = named_engine(preset)
        except OSError as error:
            raise OptionsError(f"--preset {preset}: {error.strerror}") from error
        if tier:
            params = opts.with_tier(params, tier, args)
        gpus = args.gpus or GPUS.get(preset, 1)
        found.append(Option(preset, params, kv, policy, many, gpus, tier))
    return found


def _around(trials: Trials, option: Option, answer: Answer) -> list[Trial]:
    """The best one, with one replica less and with one and two more."""
    assert answer.best is not None
    best = answer.best.fleet.replicas
    found = []
    for replicas in (best - 1, best, best + 1, best + 2):
        if replicas:
            known = answer.tried.get(replicas)
            found.append(known or trials.run(option.fleet(replicas), option.params))
    return found


def _choice(trial: Trial, args: argparse.Namespace) -> Choice:
    gpus = trial.fleet.all_gpus
    if args.gpu_hour is None:
        return Choice(trial, Cost(gpus, None, None))
    hour = gpus * args.gpu_hour
    million = hour / (trial.requests_per_s * 3600) * 1e6 if trial.requests_per_s else None
    return Choice(trial, Cost(gpus, hour * 24, million))


def _price(choice: Choice) -> tuple[float, float]:
    """GPUs; of equals the one with more slack in its first objective."""
    return choice.cost.gpus, choice.trial.measured[0].value


def _warnings(best: Trial) -> list[str]:
    said = []
    if best.refused:
        said.append(
            f"{best.refused:,} of {best.requests:,} requests are longer than the engine takes and "
            "were left out: plan with --set most_tokens=N or an engine with a longer context"
        )
    if best.requests < 300:
        said.append(
            f"only {best.requests} requests were played: tails are guesses; play more with "
            "--duration or --requests"
        )
    return said
