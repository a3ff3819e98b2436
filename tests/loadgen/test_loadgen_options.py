"""Durations on the command line are written as everywhere else in the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.cli import main

SMALL = [
    "simulate",
    "--workload",
    "chat",
    "--replicas",
    "2",
    "--rate",
    "5",
    "--policies",
    "round_robin",
]


@pytest.mark.parametrize(("duration", "sync"), [("60s", "20ms"), ("60", "none"), ("1m", "0.02")])
def test_durations(duration: str, sync: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    flags = ["--duration", duration, "--routers", "2", "--sync", sync, "--json", str(out)]
    assert main([*SMALL, *flags]) == 0
    assert json.loads(out.read_text())["arms"]


@pytest.mark.parametrize("flags", [["--duration", "5x"], ["--sync", "soon", "--routers", "2"]])
def test_what_is_no_duration_is_told(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*SMALL, "--duration", "1s", *flags])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status
    assert "write" in capsys.readouterr().err
