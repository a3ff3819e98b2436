"""Where and how results came about."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

_HIDDEN = "..."
_SECRET = ("--header", "--api-key")
_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")


class Made(msgspec.Struct, frozen=True):
    """What to know before results are compared with others, or made again."""

    version: str
    """Of Warmroute."""
    date: str
    """When they were ready, UTC, as ISO 8601 has it."""
    command: str
    """The command line; no keys, no headers, which may hold keys, and no passwords of URLs."""
    machine: str
    """The load generator's: processor, cores, memory, system, Python. No host's name."""
    engine: str = ""
    """What answered, as far as it tells, or what was simulated."""
    model: str = ""
    """Its name, as it was asked for."""


def version() -> str:
    """Of what is installed."""
    try:
        return importlib.metadata.version("warmroute")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def made(program: str, arguments: Sequence[str] | None = None) -> Made:
    """For results that are ready now; arguments are sys.argv's unless given."""
    given = sys.argv[1:] if arguments is None else arguments
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Made(version(), now, command_line(program, given), machine())


def command_line(program: str, arguments: Sequence[str]) -> str:
    """As it may be shown to others, and pasted into a shell."""
    shown = []
    hide = False
    for argument in arguments:
        name, sign, _ = argument.partition("=")
        if hide:
            shown.append(_HIDDEN)
        elif name in _SECRET and sign:
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(_IN_URL.sub(f"{_HIDDEN}@", argument))
        hide = argument in _SECRET
    return shlex.join([program, *shown])


def machine() -> str:
    """This one, in words."""
    cores = os.cpu_count() or 0
    try:
        able = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells
        able = cores
    parts = [_processor(), f"{able} core{'s'[: able != 1]}"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts += [f"{memory:.0f} GiB", f"{platform.system()} {platform.release()}"]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return " ".join(found[1].split()) if found else platform.machine()
