"""The settings as flags, and the help that lists them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from posixpath import join, normpath
from typing import Any, Final, NoReturn

from router.config import TABLE, Settings, load
from router.config.kinds import Replicas, Switch, Word
from router.config.serving import GROUPS
from router.config.sources import CONFIG_ENV
from router.config.table import Row

COMMON: Final = (
    "replicas",
    "policy",
    "discovery",
    "host",
    "port",
    "admin_host",
    "admin_port",
    "workers",
    "state",
    "exact",
    "log_level",
    "log_format",
)
"""What most installations set: the first that --help shows, in this order."""
COMMON_TITLE: Final = "Common settings"
_LINK = re.compile(r"\[[^]]*\]\(([^)]*)\)")
_FEW: Final = "setting_"
"""Before a setting's name, where `add_few` keeps it."""
_PAGE = "docs/reference"  # what the links in a setting's help are relative to


class _RefuseSecret(argparse.Action):
    """The flag a secret does not have, with the way to give it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        row = TABLE[self.dest]
        parser.error(
            f"{row.name} has no flag, since everybody on the machine can read those: "
            f"set {row.env}, or {row.name} in the file"
        )


class _HelpAll(argparse.Action):
    """--help with every setting."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        for action in parser._actions:
            row = TABLE.get(action.dest)
            if row and _is_main(action, row):
                action.help = _said(row)
        parser.print_help()
        parser.exit()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting. --help shows the common ones, --help-all the rest as well."""
    parser.add_argument(
        "--help-all", action=_HelpAll, help="show this, and the settings that few need"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        default="",
        help=f"YAML file with settings; flags and the environment win over it ({CONFIG_ENV})",
    )
    common = parser.add_argument_group(COMMON_TITLE)
    for name in COMMON:
        _add_flag(common, TABLE[name], _said(TABLE[name]))
    for group in GROUPS:
        section = parser.add_argument_group(group)
        for row in TABLE.values():
            if row.group == group and row.name not in COMMON:
                _add_flag(section, row, argparse.SUPPRESS)


def add_few(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """--config, and a flag for each of these settings: for a command that needs only them. Its own
    arguments may be called like a setting. `load_few` reads them."""
    parser.add_argument("--config", metavar="FILE", default="", help=f"YAML file ({CONFIG_ENV})")
    for name in names:
        row = TABLE[name]
        parser.add_argument(
            row.flag,
            dest=_FEW + name,
            default=argparse.SUPPRESS,
            metavar=row.kind.placeholder,
            help=row.help.replace("%", "%%").replace("`", ""),
        )


def load_few(parsed: argparse.Namespace, names: Sequence[str]) -> Settings:
    """The settings, with the flags of `add_few`. Raises ConfigError for settings that are wrong."""
    given = vars(parsed)
    flags: dict[str, str | Sequence[str]] = {
        name: given[_FEW + name] for name in names if _FEW + name in given
    }
    # No replica is needed here, and one that is never asked satisfies the check for one.
    flags["replicas"] = ("http://unused.invalid",)
    return load(flags, os.environ, parsed.config).settings


def _said(row: Row) -> str:
    default = row.show(row.default) or "none"
    return f"{plain(row.help)} (default {default}; {row.env})".replace("%", "%%")


def plain(text: str) -> str:
    """A setting's help without its Markdown: links become paths from the repository's root."""
    return _LINK.sub(lambda link: normpath(join(_PAGE, link[1])), text).replace("`", "")


def _is_main(action: argparse.Action, row: Row) -> bool:
    """Not the --no- of a switch, nor the flag that a secret does not have."""
    return row.flag in action.option_strings and not row.kind.secret


def _add_flag(section: argparse._ArgumentGroup, row: Row, text: str) -> None:
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
    elif isinstance(row.kind, Word):
        section.add_argument(row.flag, metavar="|".join(row.kind.words), **options)
    else:
        section.add_argument(row.flag, metavar=row.kind.placeholder, **options)
