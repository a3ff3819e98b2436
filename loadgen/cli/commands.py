"""The commands of `warmroute-loadgen`: their options, and what each does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import httpx
import msgspec
from rich.console import Console

from loadgen.calibrate import command as calibration
from loadgen.calibrate.fit import FitError
from loadgen.calibrate.probe import ProbeError
from loadgen.cli import options as opts
from loadgen.cli.parser import Parser
from loadgen.cli.preflight import check_policies
from loadgen.cli.simulated import Simulation
from loadgen.cli.values import OptionsError, count, names
from loadgen.client.target import address
from loadgen.live.compare import DIRECT, Comparing, Comparison, Contender, FleetSpec, results_of
from loadgen.live.processes import ChildError, run_async
from loadgen.live.run import RunError
from loadgen.made import made, version
from loadgen.replicas import serve
from loadgen.reproduce import command
from loadgen.results.merge import merged
from loadgen.results.offered import shortfall
from loadgen.results.schema import Kind, Results, ResultsError, read_json, write_csv, write_json
from loadgen.show.report.page import write_html
from loadgen.show.tables import show
from loadgen.show.terminal import Screen

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
REPLICAS = 4
_WRITERS: Mapping[str, Callable[[Results, Path], None]] = {
    "json": write_json,
    "csv": write_csv,
    "html": write_html,
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
    run.set_defaults(command=_run)

    versus = commands.add_parser("compare", help="routing policies under the same arrivals")
    versus.add_argument(
        "--policies",
        default="round_robin,cache_aware",
        help=f"the gateway's policies, or {DIRECT} for none (default %(default)s); the first is "
        "the baseline",
    )
    versus.add_argument("--router", action="append", default=[], metavar="NAME=URL")
    versus.add_argument(
        "--replicas", type=count(), metavar="N", help=f"simulated ones (default {REPLICAS})"
    )
    opts.add_engine(versus)
    versus.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="URL",
        help="a running one; may be repeated",
    )
    versus.add_argument("--gateway-arg", action="append", default=[], metavar="ARG")
    opts.add_repeats(versus)
    opts.add_workload(versus)
    opts.add_client(versus)
    opts.add_price(versus)
    opts.add_output(versus)
    versus.set_defaults(command=_compare)

    simulated = commands.add_parser("simulate", help="the same in virtual time, without sockets")
    simulated.add_argument("--policies", default="round_robin,cache_aware")
    simulated.add_argument(
        "--replicas",
        default=str(REPLICAS),
        metavar="N[,N...]",
        help="several make a sweep (default %(default)s)",
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
        raise OptionsError("--router needs names, each a different one, and none of --policies")
    if args.replica and args.replicas:
        raise OptionsError("--replicas starts simulated ones, --replica names running ones: one")
    if routers and not args.replica:
        raise OptionsError(
            "--router compares a router that already runs: say with --replica which replicas it "
            "has, so that the other arms get the same and caches are emptied in between"
        )
    simulated = 0 if args.replica else args.replicas or REPLICAS
    engine = opts.engine_from(args) if simulated else None
    axis, plans = opts.plans_from(args)
    comparison = Comparison(
        contenders=[
            *(Contender(name) for name in policies),
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


def _replica_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    blocks = ("--num-blocks", str(args.num_blocks)) if args.num_blocks else ()
    return ("--preset", args.preset, *blocks)


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
        description=description,
        settings=opts.settings_from(args),
    )
    results.made = args.made()
    return _finish(args, results, status)


def _simulate(args: argparse.Namespace) -> int:
    simulation = Simulation(args)
    with Screen(_progress()) as screen:
        status = _whole(lambda: simulation.run(screen))
    if status is not None and not simulation.begun:
        return status
    results = simulation.results()
    results.made = args.made()
    return _finish(args, results, status)


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
    read = [read_json(path) for path in args.file]
    return _finish(args, merged(dict(zip(called, read, strict=True))), None)


def _finish(args: argparse.Namespace, results: Results, status: int | None) -> int:
    """Write what was asked for, and show. Returns the exit status: that of what ended the work
    early, or a failure when nothing succeeded or was written."""
    written = _write(args, results)
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
