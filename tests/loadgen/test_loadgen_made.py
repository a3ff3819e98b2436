"""Where results say that they come from."""

from __future__ import annotations

import csv
import io
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

from loadgen.cli.main import main
from loadgen.made import command_line, version
from loadgen.results.schema import read_json, to_csv

COMMAND = ["simulate", "--workload", "hot", "--requests", "20", "--replicas", "2"]


def test_results_carry_how_they_were_made(tmp_path: Path) -> None:
    json, html = tmp_path / "r.json", tmp_path / "a report.html"
    arguments = [*COMMAND, "--json", str(json), "--html", str(html)]
    assert main(arguments) == 0
    made = read_json(json).made
    assert made is not None
    assert made.version == version() != "(not installed)"
    age = datetime.now(UTC) - datetime.fromisoformat(made.date)
    assert timedelta(0) <= age < timedelta(hours=1)
    assert shlex.split(made.command) == ["warmroute-loadgen", *arguments]
    assert " core" in made.machine
    assert "Python 3." in made.machine
    page = html.read_text()
    for said in (made.version, made.date, made.machine, "--workload hot"):
        assert said in page
    row = next(csv.DictReader(io.StringIO(to_csv(read_json(json)))))
    assert (row["made_version"], row["made_machine"]) == (made.version, made.machine)


def test_a_report_keeps_what_was_said_first(tmp_path: Path) -> None:
    first, second, both = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    assert main([*COMMAND, f"--json={first}"]) == 0
    assert main([*COMMAND, "--seed", "1", f"--json={second}"]) == 0
    assert main(["report", str(first), f"--json={both}"]) == 0
    assert read_json(both).made == read_json(first).made
    assert main(["report", str(first), str(second), f"--json={both}"]) == 0
    made, ones = read_json(both).made, [read_json(path).made for path in (first, second)]
    assert made is not None
    for one in ones:
        assert one is not None
        assert one.command in made.command
        assert made.machine == one.machine


def test_a_command_line_tells_no_key() -> None:
    given = ["run", "--header", "authorization: Bearer k1", "--header=x-key: k2"]
    line = command_line("warmroute-loadgen", [*given, "--url", "https://me:k3@host/v1"])
    assert not any(key in line for key in ("k1", "k2", "k3", "me:"))
    assert "@host/v1" in line
