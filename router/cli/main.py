"""The `warmroute` command."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from router import descriptors, signals
from router.cli import audit, check, state, tenants
from router.cli.flags import add_settings
from router.config import TABLE, ConfigError, Loaded, load
from router.config.sources import nearest

OK, BAD_SETTINGS, USAGE = 0, 1, 2
NOT_THERE = 1
"""A replica that was asked is not one to send requests to."""
SUPERVISED = "SUPERVISED_WARMROUTE"
"""Set for the workers of a supervisor: `router.workers.worker.ENV`, not imported for a word."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0 fine, 1 bad settings or replicas, 2 bad
    usage."""
    descriptors.hold_standard()
    parser = _parser()
    parsed, left = parser.parse_known_args(arguments)
    if left:
        parser.error(_about_unknown(left))
    if not parsed.command:
        parser.print_help()
        return USAGE
    picker = parsed.command == "picker"
    if picker or parsed.command == "serve":
        signals.hold()
    flags = {name: vars(parsed)[name] for name in TABLE if name in vars(parsed)}

    def read() -> Loaded:
        checks = check.check_picker if picker else check.check_all
        return load(flags, os.environ, parsed.config, checks)

    try:
        if parsed.command == "audit":
            return audit.run(parsed)
        if parsed.command == "state":
            return state.run(parsed)
        if parsed.command in ("keys", "tenants"):
            return tenants.run(parsed)
        loaded = read()
    except ConfigError as error:
        _print_problems(error)
        return BAD_SETTINGS
    if parsed.command == "doctor":
        from router.doctor.run import run as run_doctor

        return run_doctor(loaded.settings, isolation=parsed.prove_isolation)
    if parsed.command == "check":
        return _check(loaded, connect=parsed.connect)
    if loaded.settings.workers > 1 and not os.environ.get(SUPERVISED):
        from router.workers import supervisor

        given = sys.argv[1:] if arguments is None else arguments
        return supervisor.run(loaded.settings, given, lambda: read().settings)
    from router import app  # checks need none of it

    return app.run(loaded.settings, lambda: read().settings, loaded.sources, picker=picker)


def _print_problems(error: ConfigError) -> None:
    count = len(error.problems)
    print(f"warmroute: {count} problem{'s'[: count > 1]} in the settings", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem}".replace("\n", "\n  "), file=sys.stderr)


def _check(loaded: Loaded, *, connect: bool) -> int:
    settings, status = loaded.settings, OK
    print("The settings are fine. Other than the defaults:")
    for name, row in TABLE.items():
        value = getattr(settings, name)
        if value != row.default:
            print(f"  {name} = {row.show(value)}  (from {loaded.sources[name]})")
    warning = descriptors.limit_warning(settings.max_connections, len(settings.engines))
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if connect:
        answers = asyncio.run(check.ask_replicas(settings))
        for answer in answers:
            print(f"{answer.url}: {answer.said}", file=sys.stdout if answer.ok else sys.stderr)
        bad = sum(not answer.ok for answer in answers)
        if bad:
            print(f"{bad} of {len(answers)} replicas cannot be sent requests", file=sys.stderr)
            status = NOT_THERE
    return status


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        # argparse would print the usage of every flag before it.
        self.exit(USAGE, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="warmroute",
        description="A gateway for vLLM, SGLang and TensorRT-LLM replicas that knows what their KV "
        "caches hold.",
    )
    parser.add_argument("--version", action="version", version=f"warmroute {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="run the gateway",
        usage="%(prog)s --replica URL [--replica URL ...] [--config FILE] [FLAG ...]",
        description="Run the gateway.",
    )
    picker = commands.add_parser(
        "picker",
        help="run an endpoint picker for Envoy and gateways built on it",
        usage="%(prog)s --replica URL [--replica URL ...] [--config FILE] [FLAG ...]",
        description="Run an endpoint picker: gRPC calls (Envoy's ext_proc) come to --port, and the "
        "data plane sends the requests itself.",
    )
    check = commands.add_parser(
        "check",
        help="tell what is wrong with the settings and how to mend it",
        usage="%(prog)s [--connect] [--config FILE] [FLAG ...]",
        description="Tell what is wrong with the settings, or what differs from the defaults.",
    )
    check.add_argument(
        "--connect",
        action="store_true",
        help="also ask every replica; exit with 1 when one is not well or is no engine",
    )
    doctor = commands.add_parser(
        "doctor",
        help="examine live engines for what ruins their hit rates, and tell what mends it",
        usage="%(prog)s --replica URL [--replica URL ...] [--prefill URL ...] [--isolation] "
        "[--config FILE] [FLAG ...]",
        description="Examine live engines for everything that silently ruins hit rates. Sends each "
        "a few short prompts. Exits with 1 when anything is wrong.",
    )
    doctor.add_argument(
        "--isolation",
        dest="prove_isolation",
        action="store_true",
        help="also prove, on every API, that a salt keeps caches apart",
    )
    audit.add(commands)
    state.add(commands)
    tenants.add(commands)
    for command in (serve, picker, check, doctor):
        add_settings(command)
    return parser


def _about_unknown(left: Sequence[str]) -> str:
    """What is wrong with arguments nobody knows. Shows names only: the rest may be a secret."""
    known = [row.flag for row in TABLE.values()] + [
        "--config",
        "--connect",
        "--isolation",
        "--help-all",
    ]
    told = []
    for argument in left:
        if argument.startswith("-"):
            flag = argument.partition("=")[0]
            like = nearest(flag, known)
            told.append(f"there is no flag {flag}" + (f", did you mean {like}?" if like else ""))
    if not told:
        return "only flags can be given here; a replica's URL follows --replica"
    return "; ".join(told)


def _version() -> str:
    try:
        return importlib.metadata.version("warmroute")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
