"""The `warmroute` command."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from router.cli import check, state
from router.config import TABLE, ConfigError, Loaded, load
from router.config.kinds import Replicas, Switch
from router.config.settings import GROUPS, Row
from router.config.sources import CONFIG_ENV, nearest

OK, BAD_SETTINGS, USAGE = 0, 1, 2
SUPERVISED = "SUPERVISED_WARMROUTE"
"""Set for the workers of a supervisor: `router.workers.worker.ENV`, not imported for a word."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit status: 0 fine, 1 bad settings, 2 bad usage."""
    parser = _parser()
    parsed, left = parser.parse_known_args(arguments)
    if left:
        parser.error(_about_unknown(left))
    if not parsed.command:
        parser.print_help()
        return USAGE
    flags = {name: vars(parsed)[name] for name in TABLE if name in vars(parsed)}
    try:
        if parsed.command == "state":
            return state.run(parsed)
        loaded = load(flags, os.environ, parsed.config, check.check_all)
    except ConfigError as error:
        _print_problems(error)
        return BAD_SETTINGS
    if parsed.command == "doctor":
        from router.doctor.run import run as run_doctor

        return run_doctor(loaded.settings)
    if parsed.command == "check":
        return _check(loaded, connect=parsed.connect)
    if loaded.settings.workers > 1 and not os.environ.get(SUPERVISED):
        from router.workers import supervisor

        return supervisor.run(loaded.settings, sys.argv[1:] if arguments is None else arguments)
    from router import app  # checks need none of it

    return app.run(loaded.settings)


def _print_problems(error: ConfigError) -> None:
    count = len(error.problems)
    print(f"warmroute: {count} problem{'s'[: count > 1]} in the settings", file=sys.stderr)
    for problem in error.problems:
        print(f"  {problem}".replace("\n", "\n  "), file=sys.stderr)


def _check(loaded: Loaded, *, connect: bool) -> int:
    settings = loaded.settings
    print("The settings are fine. Other than the defaults:")
    for name, row in TABLE.items():
        value = getattr(settings, name)
        if value != row.default:
            print(f"  {name} = {row.show(value)}  (from {loaded.sources[name]})")
    warning = check.file_limit_warning(settings)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if connect:
        for answer in asyncio.run(check.ask_replicas(settings)):
            if answer.ok:
                print(f"{answer.url}: {answer.said}")
            else:
                print(f"warning: {answer.url}: {answer.said}", file=sys.stderr)
    return OK


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        # argparse would print the usage of every flag before it.
        self.exit(USAGE, f"{self.prog}: {message}\nSee {self.prog} --help.\n")


class _RefuseSecret(argparse.Action):
    """The flag a secret does not have, with the way to give it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        row = TABLE[self.dest]
        parser.error(
            f"{row.name} has no flag, since everybody on the machine can read those: "
            f"set {row.env}, or {row.name} in the file"
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="warmroute",
        description="A gateway for vLLM replicas that knows what their KV caches hold.",
    )
    parser.add_argument("--version", action="version", version=f"warmroute {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    serve = commands.add_parser(
        "serve",
        help="run the gateway",
        usage="%(prog)s --replica URL [--replica URL ...] [--config FILE] [FLAG ...]",
        description="Run the gateway.",
    )
    check = commands.add_parser(
        "check",
        help="tell what is wrong with the settings and how to mend it",
        usage="%(prog)s [--connect] [--config FILE] [FLAG ...]",
        description="Tell what is wrong with the settings, or what differs from the defaults.",
    )
    check.add_argument("--connect", action="store_true", help="also ask every replica")
    doctor = commands.add_parser(
        "doctor",
        help="examine live engines for what ruins their hit rates, and tell what mends it",
        usage="%(prog)s --replica URL [--replica URL ...] [--config FILE] [FLAG ...]",
        description="Examine live engines for everything that silently ruins hit rates. Sends each "
        "a few short prompts. Exits with 1 when anything is wrong.",
    )
    state.add(commands)
    for command in (serve, check, doctor):
        _add_settings(command)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE",
        default="",
        help=f"YAML file with settings; flags and the environment win over it ({CONFIG_ENV})",
    )
    for group in GROUPS:
        section = parser.add_argument_group(group)
        for row in TABLE.values():
            if row.group == group:
                _add_flag(section, row)


def _add_flag(section: argparse._ArgumentGroup, row: Row) -> None:
    default = row.show(row.default) or "none"
    text = f"{row.help} (default {default}; {row.env})".replace("%", "%%").replace("`", "")
    options: dict[str, Any] = {"dest": row.name, "default": argparse.SUPPRESS, "help": text}
    if row.kind.secret:
        options["help"] = argparse.SUPPRESS
        section.add_argument(row.flag, action=_RefuseSecret, nargs="?", **options)
    elif isinstance(row.kind, Switch):
        section.add_argument(row.flag, nargs="?", const="true", metavar="true|false", **options)
        options["help"] = argparse.SUPPRESS
        no = row.flag.replace("--", "--no-", 1)
        section.add_argument(no, action="store_const", const="false", **options)
    elif isinstance(row.kind, Replicas):
        section.add_argument(row.flag, action="append", metavar=row.kind.placeholder, **options)
    else:
        section.add_argument(row.flag, metavar=row.kind.placeholder, **options)


def _about_unknown(left: Sequence[str]) -> str:
    """What is wrong with arguments nobody knows. Shows names only: the rest may be a secret."""
    known = [row.flag for row in TABLE.values()] + ["--config", "--connect"]
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
