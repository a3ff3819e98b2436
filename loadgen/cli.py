"""The `warmroute-loadgen` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from loadgen import options as opts
from loadgen.calibrate import command as calibration
from loadgen.calibrate.probe import ProbeError
from loadgen.client.target import TargetError
from loadgen.compare import DIRECT, Comparison, Contender, FleetSpec, compare, results_of
from loadgen.processes import ChildError, run_async
from loadgen.replicas import serve
from loadgen.replicas.named import WHAT
from loadgen.report.page import write_html
from loadgen.reproduce import command
from loadgen.results import Results, ResultsError, read_json, to_csv, write_json
from loadgen.run import RunError
from loadgen.terminal import Screen, show

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
PRESET = "32b-2xh100"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 fine, 1 it could not run, 2 bad options, 130 on Ctrl-C or
    SIGTERM."""
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        return command(args)
    except (opts.OptionsError, TargetError) as error:
        return _fail(error, USAGE)
    except (ChildError, RunError, ResultsError, OSError) as error:
        return _fail(error, FAILED)
    except ValueError as error:
        return _fail(error, USAGE)
    except KeyboardInterrupt:
        print("Stopped; nothing is left running.", file=sys.stderr)
        return INTERRUPTED


def _fail(error: Exception, status: int) -> int:
    print(f"warmroute-loadgen: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="warmroute-loadgen", description="Load, comparisons and simulations for LLM gateways."
    )
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
    _add_fleet(versus)
    versus.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="URL",
        help="a running one; may be repeated",
    )
    versus.add_argument("--gateway-arg", action="append", default=[], metavar="ARG")
    versus.add_argument("--repeats", type=int, default=1)
    opts.add_workload(versus)
    opts.add_client(versus)
    opts.add_price(versus)
    opts.add_output(versus)
    versus.set_defaults(command=_compare)

    simulated = commands.add_parser("simulate", help="the same in virtual time, without sockets")
    simulated.add_argument("--policies", default="round_robin,cache_aware")
    _add_fleet(simulated)
    simulated.add_argument("--routers", type=int, default=1, help="gateways in front of the fleet")
    simulated.add_argument(
        "--sync",
        default="0",
        metavar="TIME",
        help="until gateways hear of each other (20ms), or none",
    )
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
        "report", help="make docs/results.md anew, or show and convert results written with --json"
    )
    report.add_argument("file", type=Path, nargs="*", help="results; without any, the page is made")
    command.add_arguments(report)
    opts.add_output(report)
    report.set_defaults(command=_report)
    return parser


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=int, default=0, metavar="N", help="simulated ones (4)")
    parser.add_argument(
        "--preset",
        default=PRESET,
        metavar="NAME|FILE",
        help=f"what they imitate: {WHAT} (default %(default)s)",
    )
    parser.add_argument("--num-blocks", type=int, default=0, help="KV cache blocks of each")


def _run(args: argparse.Namespace) -> int:
    plans = opts.plans_from(args)
    contender = Contender(args.name or ",".join(args.url), url=args.url[0])
    comparison = Comparison(
        contenders=[contender],
        fleet=FleetSpec(urls=tuple(args.url), reset=False),
        plans=plans,
        client=opts.client_from(args),
        objectives_ms=opts.objectives_from(args),
    )
    if len(args.url) > 1:
        comparison.contenders = [Contender(DIRECT)]
    kind = "run" if len(plans) == 1 else "sweep"
    return _live(args, comparison, kind, "", simulated=False)


def _compare(args: argparse.Namespace) -> int:
    contenders = [Contender(name) for name in filter(None, args.policies.split(","))]
    routers = opts.pairs(args.router, "=", "--router")
    contenders += [Contender(name, url) for name, url in routers.items()]
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names) or not names:
        raise opts.OptionsError("--policies and --router need names, each a different one")
    if args.replica and args.replicas:
        raise opts.OptionsError(
            "--replicas starts simulated ones, --replica names running ones: one"
        )
    if routers and not args.replica:
        raise opts.OptionsError(
            "--router compares a router that already runs: say with --replica which replicas it "
            "has, so that the other arms get the same and caches are emptied in between"
        )
    count = 0 if args.replica else args.replicas or 4
    fleet = FleetSpec(
        simulated=count,
        arguments=_replica_arguments(args),
        urls=tuple(args.replica),
        gateway_arguments=tuple(args.gateway_arg),
    )
    plans = opts.plans_from(args)
    comparison = Comparison(
        contenders=contenders,
        fleet=fleet,
        plans=plans,
        client=opts.client_from(args),
        repeats=max(1, args.repeats),
        objectives_ms=opts.objectives_from(args),
        price=opts.price_from(args, simulated=bool(count)),
    )
    description = f"{count} simulated replicas ({args.preset})." if count else ""
    kind = "compare" if len(plans) == 1 else "sweep"
    return _live(args, comparison, kind, description, simulated=bool(count))


def _replica_arguments(args: argparse.Namespace) -> tuple[str, ...]:
    blocks = ("--num-blocks", str(args.num_blocks)) if args.num_blocks else ()
    return ("--preset", args.preset, *blocks)


def _live(
    args: argparse.Namespace,
    comparison: Comparison,
    kind: str,
    description: str,
    *,
    simulated: bool,
) -> int:
    console = Console()
    with Screen(console) as screen:
        arms, found, warnings = run_async(compare(comparison, screen))
    results = results_of(
        args.workload,
        arms,
        found,
        warnings,
        kind=kind,
        simulated=simulated,
        description=description,
        settings=opts.settings_from(args),
    )
    return _finish(args, results, console)


def _simulate(args: argparse.Namespace) -> int:
    from loadgen.simulated import simulated_results  # numpy-heavy parts the other commands spare

    results = simulated_results(args)
    return _finish(args, results, Console())


def _calibrate(args: argparse.Namespace) -> int:
    try:
        return run_async(calibration.calibrate(args, Console()))
    except httpx.HTTPError as error:
        raise RunError(f"{args.url}: {type(error).__name__} {error}: is the engine up?") from error
    except ProbeError as error:
        raise RunError(f"{args.url}: {error}") from error


def _report(args: argparse.Namespace) -> int:
    if not args.file:
        return _reproduce(args)
    first, *others = [read_json(path) for path in args.file]
    for other in others:
        first.arms += other.arms
        first.differences += other.differences
        first.warnings += other.warnings
    return _finish(args, first, Console())


def _reproduce(args: argparse.Namespace) -> int:
    results = command.reproduce(args, Console())
    _write(args, results)
    return OK


def _finish(args: argparse.Namespace, results: Results, console: Console) -> int:
    """Write what was asked for, and show. Fails when nothing succeeded."""
    _write(args, results)
    show(results, console)
    return OK if any(arm.completed for arm in results.arms) else FAILED


def _write(args: argparse.Namespace, results: Results) -> None:
    if args.json:
        write_json(results, args.json)
    if args.csv:
        args.csv.write_text(to_csv(results))
    if args.html:
        write_html(results, args.html)


if __name__ == "__main__":
    sys.exit(main())
