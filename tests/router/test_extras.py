"""Hints name only what pip can install."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from router import extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLACES = [
    *(path for room in ("router", "loadgen") for path in (ROOT / room).rglob("*.py")),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "README.md",
]


@pytest.mark.parametrize("hint", [extras.EXACT, extras.KUBERNETES])
def test_a_hint_names_an_extra_of_the_source(hint: str) -> None:
    *_, what = shlex.split(hint.partition(": ")[2])
    extra = re.fullmatch(r"\.\[(\w+)\]", what)
    assert extra is not None
    assert extra[1] in PROJECT["optional-dependencies"]


def test_nothing_says_to_install_warmroute_from_an_index() -> None:
    wrong = re.compile(r"(pip|uv|pipx)\b[^\n]*\b(install|add|sync)\b[^\n]*['\" ]warmroute\b")
    assert [path.name for path in PLACES if wrong.search(path.read_text())] == []
