"""Agents and chats through a gateway to real engines: what was predicted, what was delivered.

    python -m bench.engines URL [URL ...]             # engines that run already
    python -m bench.engines --start 2                 # engines of its own
    python -m bench.engines --start 2 --requests 400 --sessions 6 --json out/engines.json

For each of round_robin, cache_aware, and cache_aware in exact mode, in turn: the engines' prefix
caches are emptied (needs VLLM_SERVER_DEV_MODE=1), a gateway is started, and the same sessions are
played, each step 20 to 100 ms after the answer before, whether the engine has told of that one's
blocks or not. Told are the hit rate, TTFT, the share of requests whose prediction was exactly what
the engine reported as cached, and the mean absolute error of the prediction in tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.gateways import gateway
from bench.sessions import Workload
from bench.vllm import Engine, EngineError, NoEngineError, block_of, empty, find_venv

SMALL = {"MAX_LEN": "4096", "NUM_BLOCKS": "160"}
"""Settings of engines that evict all the time under a few sessions."""
MODES = {
    "round_robin": ("--policy", "round_robin"),
    "cache_aware": (),
    "cache_aware, exact": ("--exact",),
}


@contextmanager
def engines(count: int, **settings: str) -> Iterator[list[Engine]]:
    """Start engines and wait until they are up. Raises NoEngineError and EngineError."""
    venv = find_venv()
    started = [Engine(venv, **settings) for _ in range(count)]
    try:
        for engine in started:
            engine.start()
        for engine in started:
            engine.wait()
        yield started
    finally:
        for engine in started:
            engine.close()


async def compare(urls: Sequence[str], requests: int, sessions: int, seed: int) -> dict[str, Any]:
    """Play the same sessions in each mode."""
    block = await block_of(urls[0])
    found: dict[str, Any] = {}
    for mode, flags in MODES.items():
        await empty(urls)
        async with gateway(urls, *flags) as started:
            workload = Workload(seed, requests)
            begun = perf_counter()
            await workload.run(started.url, sessions)
            found[mode] = workload.summary(block) | {"seconds": perf_counter() - begun}
        print(mode, {name: round(value, 3) for name, value in found[mode].items()}, flush=True)
    return found


def main() -> int:
    """The command `python -m bench.engines`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("urls", nargs="*")
    parser.add_argument("--start", type=int, default=0, metavar="N")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if bool(options.urls) == bool(options.start):
        parser.error("name engines that run, or say how many to --start")
    asked = options.requests, options.sessions, options.seed
    try:
        if options.urls:
            found = asyncio.run(compare(options.urls, *asked))
        else:
            with engines(options.start, **SMALL) as started:
                found = asyncio.run(compare([engine.url for engine in started], *asked))
    except (NoEngineError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
