"""The command: options to parameters, and a process that serves until it is told to stop."""

import argparse
import asyncio
import re
import signal
import socket
import sys

import httpx
import pytest

from loadgen.cli.main import main
from loadgen.engine import PRESETS
from loadgen.replicas import QUICK, serve

CODE = """
import argparse, sys
from loadgen.replicas import serve
parser = argparse.ArgumentParser()
serve.add_arguments(parser)
sys.exit(serve.main(parser.parse_args(sys.argv[1:])))
"""


def parse(*words):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(words)


def test_options_change_the_preset():
    assert serve.params_from(parse()) == QUICK
    params = serve.params_from(parse("--preset", "8b-l4", "--num-blocks", "99"))
    assert params.num_blocks == 99
    assert params.prefill_rate == PRESETS["8b-l4"].prefill_rate


def test_options_that_do_not_go_together_are_refused(capsys):
    assert serve.main(parse("--max-num-seqs", "9000")) == 2
    assert "max_num_batched_tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "65535", "--count", "2"], "--port"),
        (["--port", "99999"], "--port"),
        (["--port", "-1"], "--port"),
        (["--kv-events-port", "64535", "--count", "3"], "--kv-events-port"),
        (["--engine", "sglang", "--kv-events-port", "5557"], "--kv-events-port"),
        (["--engine", "ollama"], "--engine"),
        (["--output-tokens", "-3"], "--output-tokens"),
        (["--count", "0"], "--count"),
        (["--time-scale", "nan"], "--time-scale"),
        (["--preset", "./none.json"], "--preset ./none.json"),
    ],
)
def test_bad_options_are_refused(words, told, capsys):
    # No such address: were they accepted, nothing would be served for ever.
    command = ["replicas", "--host", "256.0.0.1", *words]
    try:
        status = main(command)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr()
    assert (status, said.out) == (2, "")
    assert told in said.err


def test_a_port_that_is_taken_is_told(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["replicas", "--port", port]) == 1
    assert port in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serves_until_told_to_stop(number):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CODE,
        *("--port", "0", "--count", "2", "--model", "m", "--adapter", "a"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert b"quick" in await process.stdout.readline()
        urls = [(await process.stdout.readline()).decode().strip() for _ in range(2)]
        assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+", url) for url in urls)
        async with httpx.AsyncClient() as client:
            cards = (await client.get(urls[1] + "/v1/models")).json()["data"]
        assert [card["id"] for card in cards] == ["m", "a"]
        process.send_signal(number)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
