"""What sharing costs, with a real redis-server: visibility, commands, bytes, loading, and CPU.

python -m bench.state                        # all
python -m bench.state visibility large cpu   # some

CPU is that of the router's process for each request, sharing on and off taking turns; `hearing` is
a second router beside it that has no requests of its own and is told of all. `live`: one router and
eight route the same requests to simulated engines that run by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop
import xxhash
from redis.asyncio import Redis

from bench.bodies import bodies
from bench.drive import drive
from bench.proxies import cpu_seconds, free_port, process, wait_for, warmroute
from loadgen.reproduce.cases import OURS, SEEDS
from loadgen.reproduce.fleets import H100_32B
from loadgen.results.records import floats
from loadgen.simulate import arrangement, coarser, prepare
from loadgen.simulate.fleet import Gateways
from loadgen.simulate.loop import Loop
from loadgen.simulate.prepare import BYTES_PER_TOKEN, Job
from loadgen.workloads import Plan, Poisson, make
from router.config import Settings
from router.config.state_url import parse
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt import Prompt
from router.prompt.spans import SPANS
from router.queue.queue import Queue
from router.queue.ticket import Refusal, Ticket
from router.scheduling.peer_request import PeerRequest
from router.scheduling.placer import INDEX_ROOM, Placement, Placer
from router.state.redis_connector import RedisConnector
from router.state.redis_transport import RedisTransport
from router.state.snapshot_writer import SnapshotWriter
from router.state.sync import StateSync
from router.types import Chain

RATE = 500
LIVE = (("unique", 35.0), ("hot", 40.0))
LIVE_REQUESTS = 1000
LIVE_ROUTERS = 8
LIVE_BLOCK = 64
"""Tokens of an engine's block; larger than usual, to save time."""
SESSIONS = 1000
"""That requests are of, in no order."""
BLOCKS = 16
"""Blocks of a prompt of 4 KB."""


@contextmanager
def redis() -> Iterator[str]:
    """Start a redis-server and give its URL."""
    path = shutil.which("redis-server")
    if path is None:
        raise RuntimeError("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = (
            *("--bind", "127.0.0.1", "--port", str(port)),
            *("--save", "", "--appendonly", "no", "--dir", folder),
        )
        with process(path, *options):
            wait_for(port)
            yield f"redis://127.0.0.1:{port}"


class _Membership(FleetListener):
    def __init__(self, index: ByteIndex, capacity: int) -> None:
        self.index = index
        self.capacity = capacity

    def on_added(self, replica: Replica) -> None:
        self.index.add_replica(replica.slot, self.capacity)


class Node:
    """A router without sockets to clients and replicas."""

    def __init__(
        self,
        url: str,
        replicas: int = 8,
        capacity: int = 1 << 40,
        kv_tokens: int = 1,
        *,
        learn_speed: bool = False,
    ) -> None:
        urls = tuple(f"http://replica-{k}:8000" for k in range(replicas))
        self.fleet = Fleet(Settings(replicas=urls, kv_cache_tokens=kv_tokens))
        self.index = ByteIndex(SPANS)
        self.fleet.listen(_Membership(self.index, capacity))
        policy = load_policy("cache_aware")
        policy.members(self.fleet.names())
        self.placer = Placer(self.index, policy, self.fleet.loads, learn_speed=learn_speed)
        self.transport = RedisTransport(connector(url), "warmroute")
        self.shared = StateSync(
            self.fleet, self.index, [self.placer], self.transport, self.index.resize
        )
        self.queue = Queue(self.fleet.loads, Settings(), capacity=lambda _: 1e15)
        self.queue.tick(0.0)
        self.shared.share_queue(self.queue)
        self.shared.start()

    def serve(self, chain: Chain) -> None:
        """Serve a request at once, from beginning to end, as one of a session."""
        now = time.monotonic()
        asker = Asker(self, chain)
        session = "%032x" % (chain[0] % SESSIONS)
        ticket = Ticket(asker, now, chain, asker.prompt.size, session=session)
        self.queue.offer(ticket, now)
        made = ticket.placement
        assert made is not None
        made.first_token(now)
        self.queue.first_token(ticket, now)
        made.finished(now)
        self.queue.ended(ticket, now, 100.0)


class Asker:
    """A request that is placed, and sent nowhere. Implements ``router.queue.ticket.Owner``."""

    def __init__(self, node: Node, chain: Chain) -> None:
        self._placer = node.placer
        self._everybody = (1 << len(node.fleet.replicas)) - 1
        self.prompt = Prompt(model="m", chain=chain, size=SPANS[len(chain)] + 9, stream=True)

    def eligible(self) -> int:
        return self._everybody

    def uncached(self) -> float:
        return self._placer.uncached(self.prompt)

    def tail_digest(self, blocks: int, length: int) -> int:
        return -1

    def place(self, eligible: int, now: float) -> Placement | None:
        return self._placer.place(self.prompt, eligible, now)

    def unplace(self, placement: Placement, now: float) -> None:
        placement.failed(now)

    def send(self, placement: Placement, now: float) -> None: ...

    def refuse(self, refusal: Refusal, now: float) -> None: ...


def told_bytes(node: Node) -> int:
    """Bytes sent to the stream, without the snapshots that the keeper writes."""
    return node.transport.bytes_sent


def connector(url: str) -> RedisConnector:
    """A function that opens Redis clients as the product does."""
    return RedisConnector(parse(url), "", "", "bench")


async def ask(url: str, *command: object) -> Any:
    """Send one command on a connection of its own."""
    async with Redis.from_url(url) as client:
        return await client.execute_command(*command)


def chain(number: int, blocks: int = BLOCKS) -> Chain:
    """A chain that shares nothing with any other."""
    hashed = xxhash.xxh3_64_intdigest
    # Long enough a text: of three bytes, hashes under seeds that are close collide.
    return array("Q", [hashed(b"block %10d of %10d" % (k, number)) for k in range(blocks)])


async def info(url: str, section: str) -> dict[str, Any]:
    """One section of Redis' INFO."""
    found: dict[str, Any] = await ask(url, "INFO", section)
    return found


async def visibility(
    url: str, count: int = 5000, rate: float = RATE, blocks: int = BLOCKS, name: str = ""
) -> dict[str, float]:
    """Requests at one router, each a prompt like no other; when does another one's index know of
    each?"""
    a, b = Node(url), Node(url)
    await a.shared.ready(5)
    await b.shared.ready(5)
    sent: dict[int, float] = {}
    lags: list[float] = []
    heard = b.placer.apply_peer_routed

    def listen(request: PeerRequest, now: float) -> None:
        heard(request, now)
        lags.append(time.monotonic() - sent[request.chain[0]])

    b.placer.apply_peer_routed = listen  # type: ignore[method-assign]
    before = int((await info(url, "stats"))["total_commands_processed"])
    wire = told_bytes(a)
    start = time.monotonic()
    for number in range(count):
        delay = start + number / rate - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        one = chain(number, blocks)
        sent[one[0]] = time.monotonic()
        a.serve(one)
    for _ in range(50):
        await asyncio.sleep(0.1)
        if len(lags) == count:
            break
    lags.sort()
    commands = int((await info(url, "stats"))["total_commands_processed"]) - before
    stream = await ask(url, "MEMORY USAGE", a.transport.keys.facts, "SAMPLES", 0)
    results = {
        "visibility_p50_ms": lags[len(lags) // 2] * 1e3,
        "visibility_p99_ms": lags[len(lags) * 99 // 100] * 1e3,
        "commands_per_request_two_routers": commands / count,
        "commands_per_request_sender": a.transport.commands / count,
        "wire_bytes_per_request": (told_bytes(a) - wire) / count,
        "wire_bytes_per_block": (told_bytes(a) - wire) / count / blocks,
        "stream_bytes_per_block": stream / count / blocks,
        "missed": float(count - len(lags)),
    }
    await a.shared.stop()
    await b.shared.stop()
    return {name + key: value for key, value in results.items()}


async def large(url: str) -> dict[str, float]:
    """The measurement of `visibility` with few prompts of about 64 KB."""
    return await visibility(url, 700, 35.0, 128, "large_")


async def sessions(url: str) -> dict[str, float]:
    """Agents: each step repeats the last one's chain and adds four blocks."""
    a = Node(url)
    await a.shared.ready(5)
    await asyncio.sleep(1)
    before = told_bytes(a)
    told = fresh = 0
    for session in range(50):
        whole = chain(10**6 + session, 200)
        for step in range(40, 200, 4):
            a.serve(whole[:step])
            told += step
        fresh += 196
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    used = told_bytes(a) - before
    await a.shared.stop()
    return {
        "session_wire_bytes_per_new_block": used / fresh,
        "session_wire_bytes_per_block_of_prompts": used / told,
    }


async def load(url: str, blocks: int = 1_000_000) -> dict[str, float]:
    """Start a router with a million blocks in Redis."""
    a = Node(url, replicas=16)
    await a.shared.ready(5)
    for number in range(blocks // BLOCKS):
        a.index.record(number % 16, chain(number), time.monotonic())
    keeper = SnapshotWriter(a.transport, a.shared)
    client = await a.transport.connector.open(a.transport.keys.facts, 5.0)
    began = time.process_time()
    wall = time.monotonic()
    await keeper.write(client)
    wrote = time.process_time() - began
    wall = time.monotonic() - wall
    size = 0
    for name in a.shared.names.values():
        size += await client.memory_usage(a.transport.keys.map(name))
    await client.aclose()
    await a.shared.stop()
    began = time.monotonic()
    b = Node(url, replicas=16)
    await b.shared.ready(30)
    took = time.monotonic() - began
    assert b.index.blocks == a.index.blocks, (b.index.blocks, a.index.blocks)
    await b.shared.stop()
    return {
        "load_blocks": float(b.index.blocks),
        "load_seconds": took,
        "write_cpu_seconds": wrote,
        "write_seconds": wall,
        "map_bytes_per_block": size / b.index.blocks,
        "resident_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class LiveGateways(Gateways):
    """Routers that share through Redis, in front of simulated engines that run by the clock."""

    def __init__(self, nodes: list[Node], seed: int) -> None:
        self.nodes = nodes
        self.placers = [node.placer for node in nodes]
        self._random = random.Random(f"{seed}/routers")

    def place(self, job: Job, now: float) -> tuple[int, Placement]:
        router = self._random.randrange(len(self.nodes))
        everybody = (1 << len(self.nodes[0].fleet.replicas)) - 1
        prompt = Prompt(
            model="m",
            chain=job.chain,
            size=job.prompt_tokens * BYTES_PER_TOKEN,
            stream=True,
            key=job.key,
        )
        return router, self.placers[router].place(prompt, everybody, time.monotonic())

    def first_token(self, router: int, placement: Placement, now: float) -> None:
        placement.first_token(time.monotonic())

    def finished(
        self,
        router: int,
        placement: Placement,
        job: Job,
        cached: int,
        now: float,
    ) -> None:
        placement.finished(time.monotonic(), job.prompt_tokens, job.output_tokens, cached)

    def failed(self, router: int, placement: Placement, now: float) -> None:
        placement.failed(time.monotonic())


async def routed(url: str, name: str, load: float, routers: int) -> dict[str, float]:
    """A case of docs/design/results.md in real time: TTFT, learned prefill tokens/s, and the share
    of time that the engines' clock stood still, for this process was late: a busy machine must not
    let requests seem to come at the same moment."""
    params = [coarser(engine, LIVE_BLOCK) for engine in H100_32B.engines]
    plan = Plan(make(name), Poisson(load), seed=SEEDS[0], requests=LIVE_REQUESTS)
    prepared = prepare(plan, LIVE_BLOCK, SPANS)
    tokens = params[0].cache_tokens
    room = int(tokens * BYTES_PER_TOKEN * INDEX_ROOM)
    nodes = [Node(url, len(params), room, tokens, learn_speed=True) for _ in range(routers)]
    for node in nodes:
        await node.shared.ready(5)
    await asyncio.sleep(3.0)  # until all have loaded and called the roll
    loop = Loop(
        prepared,
        arrangement(OURS),
        params,
        SPANS,
        routers=1,
        sync=None,
        seed=SEEDS[0],
        known_speed=False,
    )
    loop.gateways = LiveGateways(nodes, SEEDS[0])
    loop.begin()
    stood = 0.0
    began = time.monotonic()
    while loop.due < inf:
        await asyncio.sleep(max(0.0, began + stood + loop.due - time.monotonic()))
        stood = max(stood, time.monotonic() - began - loop.due)
        loop.turn()
    took = time.monotonic() - began
    for node in nodes:
        await node.shared.stop()
    ttft = 1e3 * (floats(loop.records.first) - floats(loop.records.sent))
    speeds = [load.prefill_rate for node in nodes for load in node.fleet.loads]
    return {
        "ttft": float(ttft.mean()),
        "p90": float(np.quantile(ttft, 0.9)),
        "speed": statistics.median(speeds),
        "stood_still": stood / took,
    }


async def live(url: str) -> dict[str, float]:
    """Measure one router and eight routers under two kinds of load."""
    results = {}
    for name, load in LIVE:
        found = []
        for routers in (1, LIVE_ROUTERS):
            # Else the second run would know from the first where all of these prompts are.
            await ask(url, "FLUSHALL")
            found.append(await routed(url, name, load, routers))
        one, many = found
        for measure in one:
            results[f"live_{name}_{measure}_1"] = one[measure]
            results[f"live_{name}_{measure}_{LIVE_ROUTERS}"] = many[measure]
        for measure in ("ttft", "p90"):
            results[f"live_{name}_{measure}_ratio"] = many[measure] / one[measure]
    return results


def cpu(rounds: int) -> dict[str, float]:
    """The router's CPU a request at 4 KB, with and without sharing."""
    results = {}
    sent = bodies(4_000, 300)
    with process(sys.executable, "-m", "bench.upstream", "8", read=True) as upstream:
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        for rate, count in ((500.0, 1500), (2000.0, 4000)):
            samples: dict[str, list[float]] = {"alone": [], "sharing": [], "hearing": []}
            with ExitStack() as stack:
                url = stack.enter_context(redis())
                alone = stack.enter_context(warmroute(ports))
                sharing = stack.enter_context(warmroute(ports, "--state", url))
                hearing = stack.enter_context(warmroute(ports, "--state", url))
                time.sleep(1.0)
                for turn in range(rounds + 1):
                    for name, (port, pid), watched in (
                        ("alone", alone, 0),
                        ("sharing", sharing, hearing[1]),
                    ):
                        before, heard = cpu_seconds(pid), cpu_seconds(watched) if watched else 0.0
                        uvloop.run(drive(port, sent, count, 32, rate))
                        if turn:
                            samples[name].append((cpu_seconds(pid) - before) / count * 1e6)
                            if watched:
                                used = (cpu_seconds(watched) - heard) / count * 1e6
                                samples["hearing"].append(used)
            for name, values in samples.items():
                results[f"cpu_us_{name}_at_{rate:.0f}"] = statistics.median(values)
            pairs = zip(samples["sharing"], samples["alone"], strict=True)
            results[f"cpu_ratio_at_{rate:.0f}"] = statistics.median(s / a for s, a in pairs)
    return results


def client() -> dict[str, float]:
    """CPU of one XADD of 600 bytes by redis-py's client, and by its bare connection."""
    code = """
import asyncio, os, sys, time, uvloop
sys.path.insert(0, ".")
host, port = "127.0.0.1", int(sys.argv[1])
blob = os.urandom(600)
command = ("XADD", "s", "MAXLEN", "~", 1000, "*", "f", blob)
async def client():
    from redis.asyncio import Redis
    c = Redis(host=host, port=port, socket_timeout=1)
    return lambda: c.xadd("s", {b"f": blob}, maxlen=1000)
async def connection():
    from redis.asyncio.connection import Connection
    c = Connection(host=host, port=port, socket_timeout=1)
    await c.connect()
    async def call():
        await c.send_command(*command)
        await c.read_response()
    return call
async def main():
    for make in (client, connection):
        call = await make()
        used = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(1000):
                await call()
            used.append((time.process_time() - began) * 1e3)
        print(make.__name__, sorted(used)[2])
uvloop.run(main())
"""
    with redis() as url:
        port = url.rpartition(":")[2]
        told = subprocess.run(
            [sys.executable, "-c", code, port], capture_output=True, text=True, check=True
        ).stdout
    return {f"client_us_{name}": float(us) for name, us in map(str.split, told.splitlines())}


WITH_REDIS: Final[dict[str, Callable[[str], Coroutine[None, None, dict[str, float]]]]] = {
    "visibility": visibility,
    "large": large,
    "sessions": sessions,
    "load": load,
    "live": live,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = (*WITH_REDIS, "cpu", "client")
    parser.add_argument("what", nargs="*", choices=[[], *names])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    results: dict[str, float] = {}
    for name in args.what or names:
        if name == "cpu":
            results |= cpu(args.rounds)
        elif name == "client":
            results |= client()
        else:
            with redis() as url:
                results |= uvloop.run(WITH_REDIS[name](url))
    for name, value in results.items():
        print(f"{name:<42}{value:>14.3f}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    targets = {
        "visibility_p50_ms": 20.0,
        "visibility_p99_ms": 100.0,
        "commands_per_request_two_routers": 0.6,
        "large_visibility_p50_ms": 1.0,
        "load_seconds": 5.0,
        **{f"live_{name}_{of}_ratio": 1.05 for name, _ in LIVE for of in ("ttft", "p90")},
        "cpu_ratio_at_500": 1.25,
        "cpu_ratio_at_2000": 1.25,
    }
    return int(any(results.get(name, 0.0) > most for name, most in targets.items()))


if __name__ == "__main__":
    sys.exit(main())
