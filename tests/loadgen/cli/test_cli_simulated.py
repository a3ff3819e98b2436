"""The simulate command: sweeps, repeats, what is kept of what was stopped."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.results.schema import Results, read_json, to_csv

ROOT = Path(__file__).parents[3]


def simulated(tmp_path: Path, *flags: str) -> Results:
    out = tmp_path / "r"
    command = ["simulate", "--workload", "hot", "--requests", "60", "--rate", "20"]
    assert main([*command, *flags, f"--json={out}"]) == 0
    return read_json(out)


def test_a_sweep_over_replicas(tmp_path: Path) -> None:
    results = simulated(tmp_path, "--replicas", "2,4,8")
    assert (results.kind, results.axis) == ("sweep", "replicas")
    assert [(arm.name, arm.load) for arm in results.arms] == [
        (name, load) for load in (2.0, 4.0, 8.0) for name in ("round_robin", "cache_aware")
    ]
    assert [len(arm.replicas) for arm in results.arms] == [2, 2, 4, 4, 8, 8]
    assert {each.load for each in results.differences} == {2.0, 4.0, 8.0}
    fewest, most = results.arms[0], results.arms[4]
    assert fewest.hit_rate is not None
    assert most.hit_rate is not None
    assert fewest.hit_rate > most.hit_rate, "fewer replicas forget less of each other's"


def test_a_file_with_times_is_played_to_its_end(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "r"
    lines = [
        f'{{"timestamp": {i * 30_000}, "input_length": 600, "output_length": 4, "hash_ids": [7]}}\n'
        for i in range(8)
    ]
    trace.write_text("".join(lines))
    command = ["simulate", "--workload", str(trace), "--policies", "round_robin", f"--json={out}"]
    assert main(command) == 0
    assert [arm.requests for arm in read_json(out).arms] == [8]
    assert main([*command, "--duration", "60s"]) == 0
    assert [arm.requests for arm in read_json(out).arms] == [2]


def test_what_a_load_is(tmp_path: Path) -> None:
    assert simulated(tmp_path).axis == "requests/s"
    assert simulated(tmp_path, "--rate", "", "--concurrency", "3").axis == "sessions at a time"


def test_repeats_are_joined_and_compared(tmp_path: Path) -> None:
    once = simulated(tmp_path, "--replicas", "2")
    thrice = simulated(tmp_path, "--replicas", "2", "--repeats", "3")
    for arm in thrice.arms:
        assert (arm.repeats, arm.requests, len(arm.replicas)) == (3, 180, 2)
        assert arm.reuse is not None
        assert arm.reuse.delivered == arm.cached_tokens
        assert arm.reuse.prompt == arm.prompt_tokens
    for results in (once, thrice):
        base, arm = results.arms
        (hits,) = (each for each in results.differences if each.metric == "hit_rate")
        assert (hits.baseline, hits.arm) == ("round_robin", "cache_aware")
        assert arm.hit_rate is not None
        assert base.hit_rate is not None
        assert hits.value == pytest.approx(arm.hit_rate - base.hit_rate)
        assert hits.low < hits.value < hits.high
    assert [any("one run of each" in said for said in r.warnings) for r in (once, thrice)] == [
        True,
        False,
    ]
    # Every run has prompts of its own.
    assert thrice.arms[0].prompt_tokens != 3 * once.arms[0].prompt_tokens


def test_there_is_no_gap_between_tokens_in_virtual_time(tmp_path: Path) -> None:
    results = simulated(tmp_path)
    assert results.arms[0].itl_ms.count == 0
    assert results.arms[0].itl_ms.p99 is None
    (row, _) = csv.DictReader(io.StringIO(to_csv(results)))
    assert row["itl_ms_p99"] == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_had_ended_is_kept(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "r"
    command = [sys.executable, "-m", "loadgen.cli.main", "simulate", "--rate", "ladder"]
    command += ["--workload", "unique", "--requests", "1500", f"--json={out}"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ours:
        try:
            assert ours.stderr is not None
            for line in ours.stderr:
                if "done" in line:
                    break
            ours.send_signal(number)
            said, complained = ours.communicate(timeout=50)
        finally:
            ours.kill()
    assert ours.returncode == 130, complained
    assert "Stopped" in complained
    assert "Traceback" not in complained
    results = read_json(out)
    assert 1 <= len(results.arms) < 32
    assert results.arms[0].completed == 1500
    assert "cache_aware at 60 requests/s did not run" in results.warnings
    assert "round_robin" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_loads(number: signal.Signals) -> None:
    """It may come in the middle of the imports, which are most of a short command."""
    ours = f"""
import importlib.abc, os, sys
from loadgen.cli.main import main
class Signalled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "httpx":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signalled())
sys.exit(main(["report", "nothing"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", ours], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "Stopped; nothing is left running.\n")
