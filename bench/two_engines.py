"""Policies compared on two real engines with the agent workload, for docs/design/results.md.

    make engines                                    # installs vLLM first where it is missing
    python -m bench.two_engines --repeats 1         # smaller
    python -m bench.two_engines --json out/engines.json

Starts two engines, each with a KV cache of about half of what the agents work with, runs
`warmroute-loadgen compare` against them, and writes its results with what they were measured on,
without the parts that no table shows. `make report` makes them a section of docs/design/results.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import msgspec

from bench.engines import engines
from bench.vllm import EngineError, NoEngineError
from loadgen.results.schema import Arm, ReplicaResult, Results, read_json, write_json

TARGET = Path("docs/design/results-engines.json")
BLOCKS = 640
"""Of 32 tokens: 20,480 tokens in each engine. The applications' own prompts take about 29,000, the
histories of the tasks under way some ten thousand."""
SETTINGS = {"MAX_LEN": "16384", "NUM_BLOCKS": str(BLOCKS)}
ARMS = "round_robin,cache_aware,cache_aware_exact"
BYTES_PER_TOKEN = "2"
"""Of the load generator's words in the tiny model's tokens, so that lengths are as asked for."""


class Load(msgspec.Struct, frozen=True):
    """The load of one comparison."""

    sessions: int = 6
    """Sessions at a time."""
    requests: int = 100
    """Of each run, and what is left of the sessions then."""
    repeats: int = 3
    numbers: tuple[str, ...] = (
        *("tool_tokens=120", "system_tokens=800", "task_tokens=150", "result_tokens=250"),
        *("output_tokens=16", "most_tokens=12000"),
        *("tool_pause=0.5", "resume_pause=2", "most_steps=10"),
    )
    """The workload's: prompts about half as long as by default, so that a processor keeps up, and no
    long session that is left alone at the end."""


def command(urls: list[str], load: Load) -> list[str]:
    """The arguments of `warmroute-loadgen` for this load."""
    return [
        *("compare", "--policies", ARMS),
        *(part for url in urls for part in ("--replica", url)),
        *("--workload", "agent", *(part for each in load.numbers for part in ("--set", each))),
        *("--concurrency", str(load.sessions), "--requests", str(load.requests), "--finish"),
        *("--repeats", str(load.repeats), "--block-tokens", "32"),
        *("--bytes-per-token", BYTES_PER_TOKEN),
    ]


def described(url: str) -> str:
    """Describes the engines and the machine in a few sentences."""
    version = httpx.get(url + "/version", timeout=60.0, trust_env=False).json()["version"]
    return (
        f"Two vLLM {version} engines on one machine without a GPU ({_processor()}, "
        f"{os.cpu_count()} cores, which the gateway and the load generator share), one thread each. "
        "The model is a Qwen2 of 2 layers with random weights in float32; "
        f"each engine's KV cache has {BLOCKS:,} blocks of 32 tokens. At the end the machine's load "
        f"average, everything on it included, was {os.getloadavg()[0]:.1f}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def small(results: Results) -> Results:
    """Without what only charts need, and without addresses, which differ each time."""
    for arm in results.arms:
        arm.ttft_quantiles_ms, arm.e2e_quantiles_ms, arm.hit_rate_over_time = [], [], []
        arm.replicas = [_anonymous(each, number) for number, each in enumerate(_by_name(arm))]
    return results


def _by_name(arm: Arm) -> list[ReplicaResult]:
    return sorted(arm.replicas, key=lambda each: each.name)


def _anonymous(replica: ReplicaResult, number: int) -> ReplicaResult:
    return msgspec.structs.replace(replica, name=f"engine {number}", hit_rate_over_time=[])


def measure(urls: list[str], load: Load) -> Results:
    """Run the comparison. Raises EngineError."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "results.json"
        asked = [*command(urls, load), "--json", str(found)]
        done = subprocess.run([sys.executable, "-m", "loadgen.cli.main", *asked], check=False)
        if done.returncode:
            raise EngineError(f"{shlex.join(asked)} ended with {done.returncode}")
        results = small(read_json(found))
    results.description = described(urls[0])
    shown = ["warmroute-loadgen", *command(["URL", "URL"], load)]
    results.settings = {"command": shlex.join(shown)}
    return results


def main() -> int:
    """The command `python -m bench.two_engines`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    usual = Load()
    parser.add_argument("--sessions", type=int, default=usual.sessions, help="at a time")
    parser.add_argument("--requests", type=int, default=usual.requests, help="of each run")
    parser.add_argument("--repeats", type=int, default=usual.repeats)
    parser.add_argument("--json", type=Path, default=TARGET)
    options = parser.parse_args()
    try:
        with engines(2, **SETTINGS) as started:
            urls = [engine.url for engine in started]
            results = measure(urls, Load(options.sessions, options.requests, options.repeats))
    except (NoEngineError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(results, options.json)
    print(f"wrote {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
