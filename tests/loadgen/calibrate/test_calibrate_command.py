"""The command against a live simulated engine: what it asks, finds and says."""

from __future__ import annotations

import json
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import httpx
import pytest

from loadgen.calibrate import command, probe
from loadgen.cli.main import main
from loadgen.engine import EngineParams
from loadgen.live.compare import start_replicas
from loadgen.live.processes import Children, run_async
from loadgen.replicas.named import named_engine


@pytest.mark.timeout(120)
def test_a_live_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "ROUNDS", 1)
    monkeypatch.setattr(probe, "CONCURRENCIES", (1, 3, 6))
    monkeypatch.setattr(command, "TURNS", 2)
    held = tmp_path / "engine.json"
    with Children() as children:
        arguments = ["--num-blocks", "2000", "--block-size", "32"]
        (url,) = run_async(start_replicas(children, 1, arguments))
        asked = ["--url", url, "--longest", "2000", "--seconds", "0", "--json", str(held)]
        asked += ["--at-a-time", "1,3"]
        status = main(["calibrate", *asked])
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    assert said.startswith(f"measuring sim at {url}: 2,000 blocks of 32 tokens")
    assert "round 1, of at least 1: done" in complained
    assert "40 other mixed requests, 1 at a time, measured and simulated: TTFT p50" in said
    assert "40 other mixed requests, 3 at a time" in said
    params = named_engine(str(held))
    assert (params.num_blocks, params.block_size) == (2000, 32)
    assert params.prefill_rate > 0
    # Both count the same blocks, whatever the times.
    one, three = json.loads(held.read_text())["agreements"]
    assert one["measured_cached"] == one["simulated_cached"] > 0
    assert (three["at_a_time"], three["requests"]) == (3, 40)


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--url", "http://127.0.0.1:9"]) == 1
    assert "is the engine up?" in capsys.readouterr().err


def test_what_is_no_engine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Any web server answers something, with any status."""
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            assert main(["calibrate", "--url", url]) == 1
        finally:
            server.shutdown()
    complained = capsys.readouterr().err
    assert f"warmroute-loadgen: {url}: no vllm:cache_config_info in /metrics (404)" in complained


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--seconds", "-3"], "--seconds"),
        (["--longest", "5"], "--longest: '5': must be at least 256"),
        (["--at-a-time", "1,0"], "--at-a-time '1,0'"),
        (["--json", "/nowhere/file"], "--json /nowhere/file"),
        (["--url", "nonsense"], "is not a URL"),
    ],
)
def test_bad_options_are_named_before_anything_is_measured(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["calibrate", "--url", "http://127.0.0.1:9", *flags])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status == 2
    assert says in capsys.readouterr().err


async def test_prompts_are_the_seeds() -> None:
    async with httpx.AsyncClient() as client:

        def prompt(seed: int | None) -> list[int]:
            return probe.Probe(client, "m", EngineParams(), seed).prompt(50)

        assert prompt(0) == prompt(0) != prompt(1)
        assert prompt(None) != prompt(None)
