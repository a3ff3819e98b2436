"""The commands of the documentation are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loadgen.cli.commands import parser
from loadgen.cli.start import START

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMAND = re.compile(r"^(?:    |\$ )?(warmroute-loadgen (?:[^\n`\\]|\\\n)*)", re.MULTILINE)


def commands() -> list[str]:
    found = [
        re.sub(r"\s*\\\n\s*", " ", text).split(" #")[0].rstrip(" &")
        for page in PAGES
        for text in _COMMAND.findall(page.read_text("utf-8"))
    ]
    found += re.findall(r" (warmroute-loadgen \w+ .*)$", START, re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_it_parses(command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "warmroute-loadgen"
    assert callable(parser().parse_args(arguments).command)


def test_there_are_some_of_every_kind() -> None:
    kinds = {shlex.split(command)[1] for command in commands()}
    assert {"simulate", "plan", "whatif", "diff", "run", "compare", "replicas", "report"} <= kinds
