"""The whatif command: an access log, or any trace with times, under other circumstances."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.cli import options as opts
from loadgen.cli.values import OptionsError, count, counts, names, positives, sentence
from loadgen.engine import EngineParams
from loadgen.live.compare import RunObserver, results_of
from loadgen.planning.observed import Observed, beside, moment, observed
from loadgen.results.bootstrap import ONE_RUN, against_first
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Results
from loadgen.simulate import ArmRun, Outage, arm_of, arrangement, prepare, run_once
from loadgen.workloads.files import Replay
from router.prompt.spans import SPANS

REPLICAS = 4
POLICY = "cache_aware"
AS_NOW = "as it is"


class Variant(msgspec.Struct, frozen=True):
    """One thing that is otherwise, or none."""

    name: str
    policy: str
    replicas: int
    params: EngineParams
    outages: tuple[Outage, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command."""
    add = parser.add_argument
    add("--policy", default="", help="of the gateway (default: the log's, else cache_aware)")
    add("--replicas", type=count(), metavar="N", help="there are (default: as in the log, else 4)")
    opts.add_engine(parser)
    opts.add_repeats(parser)
    group = parser.add_argument_group("what if")
    add = group.add_argument
    add("--other-policies", default="", metavar="NAME,...", help="other policies")
    add("--other-replicas", default="", metavar="N,...", help="more or fewer replicas")
    add("--kv-memory", default="", metavar="TIMES,...", help="KV caches so many times as large")
    add(
        "--other-offload-gb",
        default="",
        metavar="GB,...",
        help="a KV cache tier in CPU memory of so many 10^9 bytes",
    )
    add(
        "--lose",
        action="append",
        default=[],
        metavar="N@TIME[-TIME]",
        help="replica N (from 0) is lost, and there again at the second time: of day in UTC "
        "(0@12:00-12:10), or since the log's start (0@10m-20m); may be repeated",
    )


def whatif(args: argparse.Namespace, stage: RunObserver) -> Results:
    """Play it in virtual time. Raises ValueError for options that make no sense, and TraceError."""
    _, plans = opts.plans_from(args)
    plan = plans[0][1]
    if len(plans) > 1 or not plan.workload.timed or args.rate or args.concurrency:
        raise OptionsError(
            f"whatif plays what happened at its own times: {args.workload} has none, or was given "
            "others; simulate takes any workload"
        )
    if not args.duration:
        plan = msgspec.structs.replace(plan, duration=0.0)
    seen = (
        observed(Path(args.workload.removeprefix("replay:")))
        if isinstance(plan.workload, Replay)
        else None
    )
    variants = _variants(args, seen)
    found: dict[str, list[Records]] = {}
    arms: list[Arm] = []
    for variant in variants:
        runs = []
        for repeat in range(args.repeats):
            seeded = msgspec.structs.replace(plan, seed=plan.seed + repeat)
            stage.started(variant.name, 0.0, repeat, seeded)
            prepared = prepare(seeded, variant.params.block_size, SPANS, keys=True)
            engines = [variant.params] * variant.replicas
            runs.append(
                run_once(
                    prepared,
                    arrangement(variant.policy),
                    engines,
                    seed=seeded.seed,
                    outages=variant.outages,
                )
            )
            stage.ended(_arm(args, variant, runs[-1:]))
        arms.append(_arm(args, variant, runs))
        found[variant.name] = [run.records for run in runs]
    said = [
        f"{variants[0].replicas} replicas ({variants[0].params.name}: {variants[0].params.origin}) "
        f"with {variants[0].policy}, in virtual time.",
        *([sentence(beside(seen, arms[0]))] if seen else []),
        *map(sentence, opts.assumptions_from(plans)),
    ]
    return results_of(
        args.workload,
        arms,
        against_first(found),
        _warnings(args, seen),
        kind="simulate",
        simulated=True,
        description=" ".join(said),
        settings=opts.settings_from(args),
    )


def _arm(args: argparse.Namespace, variant: Variant, runs: Sequence[ArmRun]) -> Arm:
    return arm_of(
        variant.name,
        runs,
        replicas=variant.replicas,
        objectives_ms=opts.objectives_from(args),
    )


def _variants(args: argparse.Namespace, seen: Observed | None) -> list[Variant]:
    params = opts.engine_from(args)
    replicas = args.replicas or (seen.replicas if seen else 0) or REPLICAS
    told = seen.policy if seen else ""
    policy = args.policy or told or POLICY
    arrangement(policy)
    now = Variant(AS_NOW, policy, replicas, params)
    change = msgspec.structs.replace
    found = [now]
    for name in names(args.other_policies, "--other-policies") if args.other_policies else ():
        arrangement(name)
        found.append(change(now, name=name, policy=name))
    others = counts(args.other_replicas, "--other-replicas") if args.other_replicas else ()
    found += [
        change(now, name=f"{many} replica{'s'[: many != 1]}", replicas=many) for many in others
    ]
    for kv in positives(args.kv_memory, "--kv-memory") if args.kv_memory else ():
        blocks = max(2, round((params.num_blocks - 1) * kv) + 1)
        larger = change(params, num_blocks=blocks)
        found.append(change(now, name=f"KV cache x {kv:g}", params=larger))
    tiers = positives(args.other_offload_gb, "--other-offload-gb") if args.other_offload_gb else ()
    for gigabytes in tiers:
        tiered = opts.with_tier(params, gigabytes, args)
        found.append(change(now, name=f"offload {gigabytes:g} GB", params=tiered))
    if args.lose:
        outages = tuple(_outage(text, replicas, seen) for text in args.lose)
        if len({outage.slot for outage in outages}) >= replicas:
            raise OptionsError("--lose: at least one replica has to stay")
        found.append(change(now, name=f"lost {', '.join(args.lose)}", outages=outages))
    if len(found) == 1:
        raise OptionsError(
            "whatif needs something that is otherwise: --other-policies, --other-replicas, "
            "--kv-memory, --other-offload-gb or --lose"
        )
    return found


def _outage(text: str, replicas: int, seen: Observed | None) -> Outage:
    slot, sign, times = text.partition("@")
    try:
        number = int(slot)
        first, again, second = times.partition("-")
        began = seen.began if seen else 0.0
        at = moment(first, began)
        until = moment(second, began) if again else float("inf")
    except (ValueError, IndexError):
        number, at, until = -1, 0.0, 0.0
    if not sign or not 0 <= number < replicas or until <= at:
        raise OptionsError(
            f"--lose {text!r}: write N@TIME or N@TIME-TIME, N from 0 to {replicas - 1}, such as "
            "0@12:00-12:10 or 0@10m"
        )
    return Outage(at, number, until)


def _warnings(args: argparse.Namespace, seen: Observed | None) -> list[str]:
    said = []
    if seen and seen.without_blocks:
        said.append(
            f"{seen.without_blocks:,} of {seen.requests:,} lines have no blocks and were left out"
        )
    if seen and seen.failed:
        said.append(f"{seen.failed:,} of the log's requests failed then; here they are answered")
    if args.repeats == 1:
        said.append(ONE_RUN)
    return said
