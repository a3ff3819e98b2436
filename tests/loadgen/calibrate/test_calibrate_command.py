"""The command against a live simulated engine: what it asks, finds and says."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.calibrate import probe
from loadgen.cli import main
from loadgen.compare import start_replicas
from loadgen.processes import Children, run_async
from loadgen.replicas.named import named_engine


@pytest.mark.timeout(120)
def test_a_live_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "CONCURRENCIES", (1, 3, 6))
    held = tmp_path / "engine.json"
    with Children() as children:
        arguments = ["--num-blocks", "2000", "--block-size", "32"]
        (url,) = run_async(start_replicas(children, 1, arguments))
        asked = ["--url", url, "--longest", "2000", "--seconds", "0", "--json", str(held)]
        status = main(["calibrate", *asked])
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    assert "200 mixed requests: TTFT p50 measured" in said
    params = named_engine(str(held))
    assert (params.num_blocks, params.block_size) == (2000, 32)
    assert params.prefill_rate > 0
    # Both count the same blocks, whatever the times.
    cached = said.rpartition("cached tokens ")[2].split(" and ")
    assert int(cached[0].replace(",", "")) > 0


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--url", "http://127.0.0.1:9"]) == 1
    assert "is the engine up?" in capsys.readouterr().err
