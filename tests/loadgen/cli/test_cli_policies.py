"""Policies of users' own, and names that look like something else, at the command line."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest
from rich.console import Console

from loadgen.cli.main import main
from loadgen.results.schema import Results, read_json
from loadgen.show.tables import show
from loadgen.show.terminal import Screen
from loadgen.workloads import Plan, Poisson, make

MODULE = """\
from router.types import Choice


class Last:
    def members(self, names):
        self.slots = names

    def choose(self, ask, loads):
        return Choice(ask.eligible.bit_length() - 1, "last")


class Boom(Last):
    def choose(self, ask, loads):
        raise KeyError("[/nope]")  # line 14


class Late(Last):
    asked = 0

    def choose(self, ask, loads):
        self.asked += 1
        if self.asked > 5:
            self.nothing  # line 23
        return super().choose(ask, loads)


class Constructor(Last):
    def __init__(self):
        raise KeyError("never")  # line 29


class Members(Last):
    def members(self, names):
        int("many")  # line 34


class Outside(Last):
    def choose(self, ask, loads):  # line 38
        return Choice(99, "outside")


class Number(Last):
    def choose(self, ask, loads):  # line 43
        return 1


class Word(Last):
    def choose(self, ask, loads):  # line 48
        return Choice("1", "word")


class Silent(Last):
    def choose(self, ask, loads):  # line 53
        pass
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working directory, of a name that was never imported."""
    name = f"own_policies_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def simulate(policies: str, *more: str) -> int:
    command = ["simulate", "--workload", "hot", "--requests", "20", "--replicas", "2"]
    return main([*command, "--policies", policies, *more])


def test_a_policy_is_found_in_the_working_directory(module: str, tmp_path: Path) -> None:
    assert simulate(f"round_robin,{module}:Last", f"--json={tmp_path / 'r'}") == 0
    _, arm = read_json(tmp_path / "r").arms
    assert [replica.requests for replica in arm.replicas] == [0, 20]


FAULTS = {
    "Boom": (14, "KeyError: '[/nope]'"),
    "Late": (23, "AttributeError"),
    "Constructor": (29, "KeyError: 'never'"),
    "Members": (34, "ValueError"),
    "Outside": (38, "chose the slot 99"),
    "Number": (43, "returned 1"),
    "Word": (48, "slot '1'"),
    "Silent": (53, "returned None"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_file_and_line(
    name: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, says = FAULTS[name]
    assert simulate(f"{module}:{name}") == 1
    said = capsys.readouterr().err
    assert f"{module}:{name}" in said
    assert f"{tmp_path / module}.py, line {line}" in said
    assert says in said
    assert "Traceback" not in said


def test_a_comparison_is_not_begun_with_one(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--policies", f"{module}:Boom", "--requests", "5"]) == 1
    assert f"{tmp_path / module}.py, line 14" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"), [("1 / 0\n", 1), ("def f(:\n", 1), ("\nimport nothing_of_the_kind\n", 2)]
)
def test_a_module_that_cannot_be_imported(
    text: str,
    line: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"broken_policies_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert simulate(f"{name}:Any") == 2
    assert f"{tmp_path / name}.py, line {line}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_name_that_is_nearly_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--policies", "cache_awar", "--requests", "5"]) == 2
    said = capsys.readouterr().err
    assert "did you mean cache_aware?" in said
    assert said.count("\n") == 1


ODD = "[red]x[/nope] :boom: [/]"


@pytest.mark.parametrize("width", [60, 200])
def test_what_users_wrote_is_no_markup(width: int, tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert simulate("round_robin,cache_aware", "--repeats", "2", f"--json={out}") == 0
    results: Results = read_json(out)
    results.arms[1].name = ODD
    for number, each in enumerate(results.differences):
        results.differences[number] = type(each)(
            each.metric, ODD, ODD, each.value, each.low, each.high, each.relative
        )
    results.workload = results.description = results.conclusion = ODD
    results.warnings = [ODD]
    results.arms[1].errors = {ODD: 3}
    console = Console(file=io.StringIO(), width=width)
    show(results, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("[red]x[/nope]") >= 5
    assert ":boom:" in said
    results.kind = "sweep"
    show(results, console)


def test_a_title_on_the_screen_is_no_markup() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Screen(console) as screen:
        screen.started(ODD, 0.0, 0, Plan(make("hot", {}), Poisson(1.0), requests=1))
        console.print(screen)
    assert "[/nope]" in console.file.getvalue()  # type: ignore[attr-defined]
