"""The gateway's own access log as a workload."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.live.compare import start_replicas
from loadgen.live.gateway import start_gateway
from loadgen.live.processes import Child, Children, run_async
from loadgen.results.schema import read_json

LOGGED = ("--access-log", "1", "--access-log-blocks", "true")


async def start(children: Children) -> tuple[str, Child]:
    urls = await start_replicas(children, 2)
    gateway = await start_gateway(children, urls, "cache_aware", LOGGED)
    return gateway.url, gateway.child


@pytest.mark.timeout(300)
def test_a_log_that_the_gateway_wrote_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, first, again = tmp_path / "log", tmp_path / "first.json", tmp_path / "again.json"
    with Children() as children:
        url, gateway = run_async(start(children))
        load = ["--workload", "hot", "--set", "others=3", "--set", "output_tokens=4"]
        load += ["--rate", "40", "--duration", "1.5"]
        assert main(["run", "--url", url, *load, "--json", str(first)]) == 0
        os.kill(gateway.pid, signal.SIGTERM)
        gateway.process.wait(90)
        log.write_text(gateway.said(100_000_000))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # The client also asked for the models, which has no blocks.
    blocks = [line["blocks"] for line in lines if line.get("blocks")]
    assert len(lines) > len(blocks)
    played = read_json(first).arms[0]

    replayed = ["simulate", "--policies", "cache_aware", "--replicas", "2"]
    replayed += ["--workload", f"replay:{log}", "--preset", "quick", "--json", str(again)]
    status = main(replayed)
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    (arm,) = read_json(again).arms
    assert arm.requests == arm.completed == played.requests == len(blocks)
    assert arm.prompt_tokens == played.prompt_tokens
    assert arm.output_tokens == played.output_tokens
    # The gateway's blocks are coarser than the engine's, so a little reuse is lost to the log.
    assert played.upper_bound - 0.15 < arm.upper_bound <= played.upper_bound + 0.02
    assert arm.hit_rate is not None
    assert arm.hit_rate > 0.5 * arm.upper_bound
