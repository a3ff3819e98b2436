"""The commands of `warmroute-loadgen`: their options, and what each does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from loadgen.calibrate import command as calibration
from loadgen.calibrate.fit import FitError
from loadgen.calibrate.probe import ProbeError
from loadgen.cli import options as opts
from loadgen.cli import planned, whatif
from loadgen.cli.parser import Parser
from loadgen.cli.preflight import check_policies
from loadgen.cli.simulated import Simulation
from loadgen.cli.values import OptionsError, count, names, sentence
from loadgen.client.target import address
from loadgen.live.compare import DIRECT, Comparing, Comparison, Contender, FleetSpec, results_of
from loadgen.live.gateway import EXACT_ARMS
from loadgen.live.processes import ChildError, run_async
from loadgen.live.run import RunError
from loadgen.made import made, version
from loadgen.planning import report as plan_report
from loadgen.replicas import serve
from loadgen.reproduce import command
from loadgen.results.diff import diff, worse
from loadgen.results.export import RunRecords, is_records, results_again, write_records
from loadgen.results.merge import merged
from loadgen.results.offered import shortfall
from loadgen.results.schema import Kind, Results, ResultsError, read_json, write_csv, write_json
from loadgen.show.markdown import write_markdown
from loadgen.show.report.page import write_html
from loadgen.show.tables import show
from loadgen.show.terminal import Screen

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
REPLICAS = 4
_WRITERS: Mapping[str, Callable[[Results, Path], None]] = {
    "json": write_json,
    "csv": write_csv,
    "html": write_html,
    "markdown": write_markdown,
}
_ERRORS = (ChildError, RunError, OSError, ValueError)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status. Raises KeyboardInterrupt when it was stopped before
    it had anything to show."""
    args = parser().parse_args(arguments)
    args.made = partial(made, "warmroute-loadgen", arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        opts.check_output(args)
        return command(args)
    except _ERRORS as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """Say it. Returns the exit status."""
    print(f"warmroute-loadgen: {error}", file=sys.stderr)
    could_not = isinstance(error, ChildError | RunError | ResultsError | OSError)
    return FAILED if could_not else USAGE


def parser() -> argparse.ArgumentParser:
    """Of the whole command line; what a command does is its ``command``."""
    parser = Parser(
        prog="warmroute-loadgen", description="Load, comparisons and simulations for LLM gateways."
    )
    parser.add_argument("--version", action="version", version=f"warmroute-loadgen {version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="play a workload against a URL")
    run.add_argument(
        "--url", action="append", required=True, help="several are used in turn for each request"
    )
    run.add_argument("--name", default="", help="of the arm in the results (default the URL)")
    opts.add_workload(run)
    opts.add_client(run)
    opts.add_output(run)
    opts.add_records(run)
    run.set_defaults(command=_run)

    versus = commands.add_parser("compare", help="routing policies under the same arrivals")
    versus.add_argument(
        "--policies",
        default="round_robin,cache_aware",
        help=f"the gateway's policies, or {DIRECT} for none (default %(default)s); the first is "
        "the baseline",
    )
    versus.add_argument(
        "--router",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a router that already runs, as an arm of this name; may be repeated",
    )
    versus.add_argument(
        "--replicas", type=count(), metavar="N", help=f"simulated ones (default {REPLICAS})"
    )
    versus.add_argument(
        "--prefill",
        type=count(),
        metavar="N",
        help="so many more simulated ones, which prefill for them in a second arm of each policy",
    )
    opts.add_engine(versus)
    versus.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="URL",
        help="a running one; may be repeated",
    )
    versus.add_argument(
        "--gateway-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="a flag for each gateway that is started, with an equals sign "
        "(--gateway-arg=--retries --gateway-arg=0); may be repeated",
    )
    opts.add_repeats(versus)
    opts.add_workload(versus)
    opts.add_client(versus)
    opts.add_price(versus)
    opts.add_output(versus)
    opts.add_records(versus)
    versus.set_defaults(command=_compare)

    simulated = commands.add_parser("simulate", help="the same in virtual time, without sockets")
    simulated.add_argument(
        "--policies",
        default="round_robin,cache_aware",
        help="the gateway's policies (default %(default)s); the first is the baseline",
    )
    simulated.add_argument(
        "--replicas",
        default=str(REPLICAS),
        metavar="N[,N...]",
        help="several make a sweep (default %(default)s)",
    )
    simulated.add_argument(
        "--prefill",
        type=count(),
        metavar="N",
        help="so many more, which prefill for them: for the requests that the gateway chooses, and "
        "for all; beside them each policy has all replicas alike",
    )
    opts.add_engine(simulated)
    simulated.add_argument(
        "--routers", type=count(), default=1, help="gateways in front of the fleet"
    )
    simulated.add_argument(
        "--sync",
        default="0",
        metavar="TIME",
        help="until gateways hear of each other (20ms), or none",
    )
    opts.add_repeats(simulated)
    opts.add_workload(simulated)
    opts.add_price(simulated)
    opts.add_output(simulated)
    opts.add_records(simulated)
    simulated.set_defaults(command=_simulate)

    replicas = commands.add_parser("replicas", help="serve simulated vLLM replicas")
    serve.add_arguments(replicas)
    replicas.set_defaults(command=serve.main)

    fitted = commands.add_parser("calibrate", help="fit the engine model to a live vLLM engine")
    calibration.add_arguments(fitted)
    fitted.set_defaults(command=_calibrate)

    report = commands.add_parser(
        "report",
        help="make docs/design/results.md anew, or show and convert results written with --json",
    )
    report.add_argument(
        "file",
        type=Path,
        nargs="*",
        help="results; several of the same workload and settings are joined; without any, the "
        "page is made",
    )
    command.add_arguments(report)
    opts.add_output(report)
    report.set_defaults(command=_report)

    plan = commands.add_parser("plan", help="the cheapest fleet that holds objectives")
    planned.add_arguments(plan)
    opts.add_workload(plan)
    for name in ("json", "markdown"):
        plan.add_argument(f"--{name}", type=Path, metavar="FILE")
    plan.set_defaults(command=_plan)

    otherwise = commands.add_parser(
        "whatif", help="an access log with another policy, KV cache, fleet, or a replica lost"
    )
    whatif.add_arguments(otherwise)
    opts.add_workload(otherwise)
    opts.add_output(otherwise)
    otherwise.set_defaults(command=_whatif)

    changed = commands.add_parser("diff", help="two results, before and after, with intervals")
    changed.add_argument("before", type=Path, help="what --json or --records wrote")
    changed.add_argument("after", type=Path)
    changed.add_argument(
        "--check", action="store_true", help="exit with 1 where something got worse for certain"
    )
    opts.add_output(changed)
    changed.set_defaults(command=_diff)
    for each in commands.choices.values():
        each.set_defaults(parser=each)
    return parser


def _run(args: argparse.Namespace) -> int:
    for url in args.url:
        address(url)
    axis, plans = opts.plans_from(args)
    # Nothing empties the caches between the points of a sweep: each asks with other prompts.
    plans = [
        (load, msgspec.structs.replace(plan, seed=plan.seed + number))
        for number, (load, plan) in enumerate(plans)
    ]
    name = args.name or ",".join(args.url)
    many = len(args.url) > 1
    comparison = Comparison(
        contenders=[Contender(DIRECT) if many else Contender(name, url=args.url[0])],
        fleet=FleetSpec(urls=tuple(args.url), reset=False),
        plans=plans,
        client=opts.client_from(args),
        objectives_ms=opts.objectives_from(args),
    )
    return _live(args, comparison, axis, "run", "", simulated=False)


def _compare(args: argparse.Namespace) -> int:
    policies = names(args.policies, "--policies")
    check_policies(policies)
    routers = opts.pairs(args.router, "=", "--router")
    for url in (*routers.values(), *args.replica):
        address(url)
    clash = [name for name in routers if name in policies]
    if clash or len(routers) < len(args.router):
        raise OptionsError("--router: give each router a name of its own that is not in --policies")
    if args.replica and args.replicas:
        raise OptionsError(
            "--replicas starts replicas, --replica names running ones: give only one"
        )
    if routers and not args.replica:
        raise OptionsError(
            "--router compares a router that already runs: say with --replica which replicas it "
            "has, so that the other arms get the same and caches are emptied in between"
        )
    prefill = args.prefill or 0
    if prefill and args.replica:
        raise OptionsError("--prefill starts replicas, --replica names running ones: give only one")
    alone = [name for name in policies if prefill and (name == DIRECT or name in EXACT_ARMS)]
    if alone:
        raise OptionsError(f"--prefill: {alone[0]} cannot have prefill and decode apart")
    simulated = 0 if args.replica else (args.replicas or REPLICAS) + prefill
    engine = opts.engine_from(args) if simulated else None
    axis, plans = opts.plans_from(args)
    comparison = Comparison(
        contenders=[
            *(each for name in policies for each in _arms(name, prefill)),
            *(Contender(name, url) for name, url in routers.items()),
        ],
        fleet=FleetSpec(
            simulated=simulated,
            arguments=_replica_arguments(args),
            urls=tuple(args.replica),
            gateway_arguments=tuple(args.gateway_arg),
        ),
        plans=plans,
        client=opts.client_from(args),
        repeats=args.repeats,
        objectives_ms=opts.objectives_from(args),
        price=opts.price_from(args, engine),
    )
    description = f"{simulated} simulated replicas ({args.preset})." if simulated else ""
    return _live(args, comparison, axis, "compare", description, simulated=bool(simulated))


def _arms(policy: str, prefill: int) -> list[Contender]:
    """A policy with all replicas alike, and with some that prefill for the others."""
    alike = Contender(policy)
    return [alike, Contender(f"{policy}_apart", "", policy, prefill)] if prefill else [alike]


def _replica_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    blocks = ("--num-blocks", str(args.num_blocks)) if args.num_blocks else ()
    offload: tuple[str, ...] = ()
    if args.offload_gb:
        offload = ("--offload-gb", str(args.offload_gb))
        if args.offload_gb_per_s:
            offload = (*offload, "--offload-gb-per-s", str(args.offload_gb_per_s))
    return ("--preset", args.preset, *blocks, *offload, *(("--nixl",) if args.prefill else ()))


def _live(
    args: argparse.Namespace,
    comparison: Comparison,
    axis: str,
    kind: Kind,
    description: str,
    *,
    simulated: bool,
) -> int:
    opts.check_plans(comparison.plans)
    assumed = opts.assumptions_from(comparison.plans)
    with Screen(_progress()) as screen:
        comparing = Comparing(comparison, screen)
        status = _whole(lambda: run_async(comparing.run()))
    found = comparing.found()
    if status is not None and not found.arms:
        return status
    points = [(plan, [a for a in found.arms if a.load == load]) for load, plan in comparison.plans]
    results = results_of(
        args.workload,
        found.arms,
        found.differences,
        found.warnings + shortfall(points, pause_scale=args.pause_scale),
        kind=kind if len(comparison.plans) == 1 else "sweep",
        axis=axis,
        simulated=simulated,
        description=" ".join(filter(None, (description, *map(sentence, assumed)))),
        settings=opts.settings_from(args),
    )
    results.made = msgspec.structs.replace(
        args.made(),
        engine=comparing.engine or (description if simulated else ""),
        model=comparing.model,
    )
    return _finish(args, results, status, comparing.records())


def _simulate(args: argparse.Namespace) -> int:
    simulation = Simulation(args)
    with Screen(_progress()) as screen:
        status = _whole(lambda: simulation.run(screen))
    if status is not None and not simulation.begun:
        return status
    results = simulation.results()
    results.made = msgspec.structs.replace(args.made(), engine=simulation.engine)
    return _finish(args, results, status, simulation.records())


def _progress() -> Console:
    """Not where results go."""
    return Console(stderr=True)


def _whole(work: Callable[[], None]) -> int | None:
    """Do it. Returns None, or the exit status when it did not come to its end, and says why."""
    try:
        work()
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.", file=sys.stderr)
        return INTERRUPTED
    except _ERRORS as error:
        return _fail(error)
    return None


def _calibrate(args: argparse.Namespace) -> int:
    address(args.url)
    try:
        return run_async(calibration.calibrate(args, Console(), _progress()))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RunError(f"{args.url}: {type(error).__name__} {error}: is the engine up?") from error
    except (ProbeError, FitError) as error:
        raise RunError(f"{args.url}: {error}") from error


def _report(args: argparse.Namespace) -> int:
    if not args.file:
        results = command.reproduce(args, Console())
        results.made = args.made()
        return _write(args, results)
    for path in args.file:
        if not path.is_file():
            raise OptionsError(f"{path}: there is no such file")
    short = [path.name for path in args.file]
    called = short if len(set(short)) == len(short) else [str(path) for path in args.file]
    if len(set(called)) < len(called):
        raise OptionsError("the same file is there twice")
    read = [_read(path) for path in args.file]
    return _finish(args, merged(dict(zip(called, read, strict=True))), None)


def _read(path: Path) -> Results:
    """Results, or requests that results are made of again."""
    return results_again(path) if is_records(path) else read_json(path)


def _plan(args: argparse.Namespace) -> int:
    with Screen(_progress()) as screen:
        found = planned.planned(args, _progress(), screen)
    found.made = args.made()
    status = OK
    writers = {"json": plan_report.write_json, "markdown": plan_report.write_markdown}
    for name, write in writers.items():
        if path := getattr(args, name):
            try:
                write(found, path)
            except OSError as error:
                status = _fail(OSError(f"--{name} {path}: {error.strerror}"))
    plan_report.show(found, Console())
    return status if found.choices else FAILED


def _whatif(args: argparse.Namespace) -> int:
    with Screen(_progress()) as screen:
        results = whatif.whatif(args, screen)
    results.made = args.made()
    return _finish(args, results, None)


def _diff(args: argparse.Namespace) -> int:
    for path in (args.before, args.after):
        if not path.is_file():
            raise OptionsError(f"{path}: there is no such file")
    results = diff(_read(args.before), _read(args.after))
    results.made = args.made()
    status = _finish(args, results, None)
    return FAILED if args.check and worse(results) else status


def _finish(
    args: argparse.Namespace,
    results: Results,
    status: int | None,
    records: Iterable[RunRecords] = (),
) -> int:
    """Write what was asked for, and show. Returns the exit status: that of what ended the work
    early, or a failure when nothing succeeded or was written."""
    written = _write(args, results)
    if path := getattr(args, "records", None):
        try:
            write_records(results, opts.objectives_from(args), records, path)
        except OSError as error:
            written = _fail(OSError(f"--records {path}: {error.strerror or error}"))
        except ResultsError as error:
            written = _fail(error)
    show(results, Console())
    if status is not None:
        return status
    return written if any(arm.completed for arm in results.arms) else FAILED


def _write(args: argparse.Namespace, results: Results) -> int:
    """Write all files that can be written. Returns the exit status."""
    status = OK
    for name, write in _WRITERS.items():
        path = getattr(args, name)
        if path is None:
            continue
        try:
            write(results, path)
        except OSError as error:
            status = _fail(OSError(f"--{name} {path}: {error.strerror}"))
    return status
