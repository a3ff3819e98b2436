"""Load tools against real engines: vLLM's own benchmark through the gateway, and ours through every
API."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import trace_files
from caught_up import PATIENT

from bench.gateways import gateway
from bench.vllm import KIT, NoEngineError, find_venv
from loadgen.results.schema import read_json

BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
ASKED = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", "tiny"]
ASKED += ["--dataset-name", "random", "--random-input-len", "200", "--random-output-len", "8"]
ASKED += ["--num-prompts", "20", "--max-concurrency", "4", "--save-result"]


async def output_of(*command: str, folder: Path) -> str:
    """What a command says; it has to end well."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 300)
    text = said.decode(errors="replace")
    assert process.returncode == 0, text[-3000:]
    return text


async def test_vllm_bench_serve_through_the_gateway(urls: list[str], tmp_path: Path) -> None:
    try:
        python = find_venv() / "bin" / "python"
    except NoEngineError as why:
        pytest.skip(str(why))
    async with gateway(urls, *PATIENT) as started:
        asked = [*ASKED, "--base-url", started.url, "--tokenizer", str(KIT / "tiny")]
        asked += ["--result-filename", "out.json"]
        await output_of(str(python), "-c", BENCH, *asked, folder=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["completed"], found["total_output_tokens"]) == (20, 160)
    assert found["mean_ttft_ms"] > 0


@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
async def test_our_load_through_every_api(urls: list[str], tmp_path: Path, api: str) -> None:
    trace_files.write(tmp_path, "openhands")
    async with gateway(urls, *PATIENT) as started:
        command = [sys.executable, "-m", "loadgen.cli.main", "run", "--url", started.url]
        command += ["--api", api, "--workload", "trajectory.json", "--pause-scale", "0"]
        if importlib.util.find_spec("tokenizers"):
            command += ["--tokenizer", str(KIT / "tiny")]
        command += ["--concurrency", "1", "--json", "out.json", "--block-tokens", "32"]
        await output_of(*command, folder=tmp_path)
    (arm,) = read_json(tmp_path / "out.json").arms
    assert (arm.requests, arm.completed) == (3, 3)
    assert arm.hit_rate is not None
    assert arm.hit_rate > 0.3
