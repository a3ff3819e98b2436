"""What --preset takes: a name, or a file that calibrate wrote; for every command that has it."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from loadgen.cli.main import main
from loadgen.engine import PRESETS, EngineParams
from loadgen.engine.file import EngineFile, write_engine
from loadgen.live.compare import start_replicas
from loadgen.live.processes import Children, run_async
from loadgen.replicas import QUICK
from loadgen.replicas.named import named_engine

MADE = EngineParams(
    name="calibrated",
    origin="fitted to my-model",
    num_blocks=3333,
    step_base_seconds=0.001,
    prefill_rate=1e6,
    overhead_seconds=0.5,
)
SMALL = ["--workload", "chat", "--rate", "5", "--requests", "40", "--replicas", "2"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "engine.json"
    write_engine(path, EngineFile(MADE))
    return path


def test_names_and_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_engine("quick") is QUICK
    assert named_engine("8b-l4") is PRESETS["8b-l4"]
    assert named_engine(str(file)) == MADE
    monkeypatch.chdir(file.parent)
    assert named_engine("engine.json") == MADE
    with pytest.raises(ValueError, match=r"'nope' is neither a preset nor a file.*8b-h100"):
        named_engine("nope")
    with pytest.raises(FileNotFoundError, match=r"nope\.json"):
        named_engine("nope.json")


def test_simulate_takes_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = file.parent / "out.json"
    assert main(["simulate", *SMALL, "--preset", str(file), "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    assert "calibrated: fitted to my-model" in results["description"]
    for arm in results["arms"]:
        # No answer can come sooner than what a request costs outside of steps.
        assert arm["ttft_ms"]["p50"] > 500


def test_compare_takes_a_file(file: Path) -> None:
    out = file.parent / "out.json"
    asked = ["--workload", "unique", "--set", "prompt_tokens=100", "--set", "output_tokens=2"]
    asked += ["--rate", "20", "--requests", "8", "--replicas", "2", "--preset", str(file)]
    assert main(["compare", "--policies", "direct", *asked, "--json", str(out)]) == 0
    (arm,) = json.loads(out.read_text())["arms"]
    assert arm["ttft_ms"]["p50"] > 500


def test_replicas_take_a_file(file: Path) -> None:
    with Children() as children:
        (url,) = run_async(start_replicas(children, 1, ["--preset", str(file)]))
        assert 'num_gpu_blocks="3333"' in httpx.get(url + "/metrics").text


@pytest.mark.parametrize("command", ["simulate", "compare", "replicas"])
def test_a_bad_file_is_told(command: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace('"prefill_rate": 1000000.0', '"prefill_rate": "x"'))
    # No such address: were the file accepted, nothing would be served for ever.
    fleet = ["--host", "256.0.0.1"] if command == "replicas" else SMALL
    assert main([command, *fleet, "--preset", str(file)]) == 2
    said = "".join(capsys.readouterr())
    assert "engine.json: params" in said
    assert "prefill_rate" in said
