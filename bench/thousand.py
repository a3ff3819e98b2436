"""One router in front of a thousand live replicas: what watching them, choosing and a scrape cost.

    python -m bench.thousand                     # 1,000 replicas, 10 million blocks: a minute
    python -m bench.thousand --replicas 200 --blocks 1000000
    python -m bench.thousand --json FILE

The replicas are simulated, all in one process of their own; the router finds them by file and runs
in this process with its usual settings, its sockets and all. CPU is that of this process, so that
its neighbours change little. A pause is the CPU time that the loop's thread spent between two turns
of a timer that is always due. Exit status 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import httpx
import msgspec
import uvloop

from bench.bodies import bodies
from bench.drive import drive
from bench.index import Traffic, resident
from loadgen.replicas import QUICK, SimulatedFleet
from router.app import App
from router.config import Settings
from router.malloc import keep_freed_memory
from router.prompt import Prompt
from router.prompt.spans import SPANS
from router.telemetry.record import Finished
from router.types import Chain

AIMS = {
    "watching, share of a core": 0.20,
    "placing us, median": 40.0,
    "resident MB": 1000.0,
    "scrape: longest pause ms": 2.0,
}
MODEL = "m"
KV_TOKENS = 4_000_000
"""What the router takes each cache for: the index must have room for the blocks asked for."""
WATCHED = 10.0
"""Seconds the router is watched while it has nothing else to do."""
LONGEST = 110
"""New blocks of a conversation, at most: the index's nodes are then as long as in bench.index."""
PROMPTS = 4000
SCRAPES = 10
IN_FLIGHT = 16
"""Requests in flight on each replica while choices are measured."""


async def serve(count: int) -> None:
    """Run the replicas: print their URLs, then serve until killed."""
    params = msgspec.structs.replace(QUICK, num_blocks=600, max_model_len=8192)
    async with SimulatedFleet(count, params=params, model=MODEL, keep_requests=0) as fleet:
        print(json.dumps(fleet.urls), flush=True)
        await asyncio.Event().wait()


@contextmanager
def simulated(count: int) -> Iterator[list[str]]:
    """URLs of so many replicas, in a process of their own."""
    command = [sys.executable, "-m", "bench.thousand", "--serve", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            yield json.loads(child.stdout.readline())
        finally:
            child.kill()


class Pauses:
    """The longest time the event loop's thread was busy without a turn of ours."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Pauses:
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self) -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            self.longest = max(self.longest, now - before)
            before = now


async def cpu_of(wait: Callable[[], Coroutine[None, None, object]]) -> tuple[float, float]:
    """CPU seconds and wall seconds that pass until `wait` returns."""
    cpu, wall = time.process_time(), time.perf_counter()
    await wait()
    return time.process_time() - cpu, time.perf_counter() - wall


async def fill(app: App, blocks: int) -> list[Chain]:
    """Conversations in the index, each as its last turn left it, on all replicas. Returns prompts
    that go on with some of them."""
    members = app.fleet.members()
    traffic = Traffic()
    rng = traffic.rng
    prompts: list[Chain] = []
    while app.index.blocks < blocks:
        for _ in range(100):
            slot = rng.choice(members).slot
            chain = rng.choice(rng.choice(traffic.heads)) + traffic.fresh(rng.randint(1, LONGEST))
            app.index.record(slot, chain, time.monotonic())
            if len(prompts) < PROMPTS:
                prompts.append(chain + traffic.fresh(4))
        await asyncio.sleep(0)
    return prompts


def place(app: App, prompts: list[Chain]) -> list[float]:
    """CPU seconds of placing each prompt, first token and end included, on a fleet that works."""
    rng = random.Random(1)
    for load in app.fleet.loads:
        load.in_flight = IN_FLIGHT
        load.context_tokens = load.kv_tokens = float(rng.randrange(50_000, 150_000))
        load.queued_tokens = float(rng.randrange(5_000))
    placer, eligible = app.placer, app.fleet.usable
    clock = time.thread_time_ns
    spent = []
    for chain in prompts:
        prompt = Prompt(model=MODEL, chain=chain, size=SPANS[len(chain)] + 40, stream=True)
        start = clock()
        now = time.monotonic()
        placed = placer.place(prompt, eligible, now)
        placed.first_token(now)
        placed.finished(now, 1000, 100)
        spent.append((clock() - start) / 1e9)
    for load in app.fleet.loads:
        load.in_flight = 0
        load.context_tokens = load.kv_tokens = load.queued_tokens = 0.0
    return spent


async def measure(urls: list[str], blocks: int, folder: Path) -> dict[str, float]:
    """All figures for one router."""
    out: dict[str, float] = {}
    listed = folder / "replicas.yaml"
    listed.write_text("".join(f"- {url}\n" for url in urls))
    app = App(
        Settings(
            host="127.0.0.1",
            port=0,
            admin_host="127.0.0.1",
            admin_port=0,
            discovery="file",
            discovery_file=str(listed),
            kv_cache_tokens=KV_TOKENS,
            # The replicas share what this machine has left, and may be slow to answer.
            health_timeout=60.0,
            access_log=False,
        )
    )
    cpu, wall = await cpu_of(app.start)
    started = time.perf_counter()
    everybody = len(urls)

    async def found() -> None:
        async with Pauses() as pauses:
            while app.fleet.usable.bit_count() < everybody:
                if time.perf_counter() - started > 60:
                    sys.exit(f"{app.fleet.usable.bit_count()} of {everybody} replicas are ready")
                await app.fleet.changed()
        out["until all are ready: longest pause ms"] = pauses.longest * 1e3

    cpu, wall = await cpu_of(found)
    out["until all are ready: seconds"], out["until all are ready: CPU seconds"] = wall, cpu
    await asyncio.sleep(2.0)
    cpu, wall = await cpu_of(lambda: asyncio.sleep(WATCHED))
    out["watching, share of a core"] = cpu / wall
    read = [time.monotonic() - replica.engine_at for replica in app.fleet.members()]
    out["watching: oldest metrics, seconds"] = max(read)

    prompts = await fill(app, blocks)
    gc.collect()
    out["blocks"] = app.index.blocks
    # Whoever was not answered in time meanwhile is back.
    await app.fleet.until(lambda: app.fleet.usable.bit_count() == everybody, 30.0)
    spent = place(app, prompts)
    out["placing us, median"] = median(spent) * 1e6
    out["placing us, mean"] = sum(spent) / len(spent) * 1e6

    made = bodies(4_000, 500)
    await drive(app.port, made, 4 * everybody, 64, 400.0)
    for replica in app.fleet.members():  # the scrape is then as large as it gets
        app.telemetry.observe(
            Finished("r", model=MODEL, slot=replica.slot, replica=replica.name, status=200)
        )
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        url = f"http://127.0.0.1:{app.admin.port}/metrics"
        text = (await client.get(url)).text
    answered = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("warmroute_requests_total{") and 'code="200"' in line
    ]
    out["requests answered"] = sum(answered) - everybody
    out["scrape: MB"] = len(text) / 1e6
    longest, usual = [], []
    # Running before it is needed: to start a process takes long where much memory is in use.
    scraper = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SCRAPER, url), stdin=PIPE, stdout=PIPE
    )
    assert scraper.stdin is not None
    assert scraper.stdout is not None
    for _ in range(SCRAPES):
        async with Pauses() as pauses:
            await asyncio.sleep(0.5)
        usual.append(pauses.longest)
        async with Pauses() as pauses:
            scraper.stdin.write(b"again\n")
            assert await scraper.stdout.readline()
        longest.append(pauses.longest)
    scraper.kill()
    await scraper.wait()
    out["scrape: longest pause ms"] = median(longest) * 1e3
    out["no scrape: longest pause ms"] = median(usual) * 1e3
    out["resident MB"] = resident() / 1e6
    await app.stop()
    return out


SCRAPER = """
import sys, urllib.request
for line in sys.stdin:
    with urllib.request.urlopen(sys.argv[1]) as answer:
        assert b"warmroute_requests_total" in answer.read()
    print("scraped", flush=True)
"""


def main() -> int:
    """The command `python -m bench.thousand`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve(args.serve))
        return 0
    keep_freed_memory()
    with simulated(args.replicas) as urls, tempfile.TemporaryDirectory() as folder:
        out = uvloop.run(measure(urls, args.blocks, Path(folder)))
    missed = 0
    for name, value in out.items():
        aim = AIMS.get(name)
        missed += aim is not None and value > aim
        print(f"{name:44}{value:14,.2f}" + (f"   (aim {aim:g})" if aim is not None else ""))
    print(f"load average {os.getloadavg()[0]:.1f}")
    if args.json is not None:
        args.json.write_text(json.dumps(out, indent=2) + "\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
