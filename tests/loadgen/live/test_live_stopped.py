"""Live comparisons that do not come to their end: what had ended is shown and written."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.results.export import results_again
from loadgen.results.schema import read_json


@pytest.mark.timeout(120)
def test_a_stopped_comparison_keeps_what_it_has(tmp_path: Path) -> None:
    out = tmp_path / "r"
    command = [
        sys.executable,
        "-m",
        "loadgen.cli.main",
        "compare",
        "--policies",
        "direct,round_robin",
    ]
    command += ["--replicas", "1", "--preset", "quick", "--workload", "unique", "--rate", "20"]
    command += ["--duration", "1s", f"--json={out}"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as ours:
        try:
            assert ours.stderr is not None
            for line in ours.stderr:
                if "round_robin: starting" in line:
                    break
            ours.send_signal(signal.SIGTERM)
            said, complained = ours.communicate(timeout=60)
        finally:
            ours.kill()
    assert ours.returncode == 130, complained
    assert complained.endswith("Stopped; nothing is left running.\n")
    results = read_json(out)
    assert [arm.name for arm in results.arms] == ["direct"]
    assert results.arms[0].completed > 5
    assert "round_robin did not run" in results.warnings
    assert "direct" in said


@pytest.mark.timeout(120)
def test_a_failed_comparison_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r"
    command = ["compare", "--policies", "direct,round_robin", "--replicas", "1", "--preset"]
    command += ["quick", "--workload", "unique", "--requests", "3", "--gateway-arg=--no-such"]
    assert main([*command, f"--json={out}"]) == 1
    said, complained = capsys.readouterr()
    assert "--no-such" in complained
    assert "direct: starting" in complained
    assert "starting" not in said
    results = read_json(out)
    assert [(arm.name, arm.completed) for arm in results.arms] == [("direct", 3)]
    assert "round_robin did not run" in results.warnings
    assert "direct" in said


@pytest.mark.timeout(120)
def test_a_stopped_run_keeps_its_requests(tmp_path: Path) -> None:
    """Its records are those that its results are made of, also where no run came to its end."""
    out, records = tmp_path / "r", tmp_path / "requests.jsonl"
    command = [sys.executable, "-m", "loadgen.cli.main", "compare", "--policies", "direct"]
    command += ["--replicas", "1", "--preset", "quick", "--workload", "unique", "--rate", "20"]
    command += ["--duration", "100s", f"--json={out}", f"--records={records}"]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as ours:
        try:
            assert ours.stderr is not None
            for line in ours.stderr:
                if "requests done" in line and " 0 of" not in line:
                    break
            ours.send_signal(signal.SIGINT)
            ours.communicate(timeout=60)
        finally:
            ours.kill()
    assert ours.returncode == 130
    (arm,) = read_json(out).arms
    assert arm.completed > 5
    (again,) = results_again(records).arms
    assert (again.requests, again.completed) == (arm.requests, arm.completed)
    assert again.ttft_ms.p90 == pytest.approx(arm.ttft_ms.p90)
