"""What sharing costs, with a real redis-server: visibility, commands, bytes, loading, and CPU.

python -m bench.state                        # all
python -m bench.state visibility load cpu    # some

CPU is that of the router's process for each request, sharing on and off taking turns; `hearing` is
a second router beside it that has no requests of its own and is told of all.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop
import xxhash

from bench.bodies import bodies
from bench.proxy import cpu_seconds, drive, free_port, process, wait_for, warmroute
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.fleet.settings import FleetSettings
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.scheduling.placer import Placer
from router.state.address import parse
from router.state.link import Link
from router.state.redis_transport import RedisCarrier
from router.state.snapshot_writer import Keeper
from router.state.sync import Shared
from router.types import Chain

RATE = 500
BLOCKS = 16
"""Of a prompt of 4 KB."""


@contextmanager
def redis() -> Iterator[str]:
    """A redis-server's URL."""
    path = shutil.which("redis-server")
    if path is None:
        raise RuntimeError("redis-server is not installed (Debian: apt-get install redis-server)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ("--port", str(port), "--save", "", "--appendonly", "no", "--dir", folder)
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
    """A router without sockets for clients and replicas."""

    def __init__(self, url: str, replicas: int = 8, capacity: int = 1 << 40) -> None:
        urls = tuple(f"http://replica-{k}:8000" for k in range(replicas))
        self.fleet = Fleet(FleetSettings(replicas=urls, kv_cache_tokens=1))
        self.index = ByteIndex(SPANS)
        self.fleet.listen(_Membership(self.index, capacity))
        policy = load_policy("cache_aware")
        policy.members(self.fleet.names())
        self.placer = Placer(self.index, policy, self.fleet.loads, learn_speed=False)
        self.carrier = RedisCarrier(Link(parse(url), "", "", "bench"), "warmroute")
        self.shared = Shared(self.fleet, self.index, [self.placer], self.carrier, self.index.resize)
        self.shared.start()

    def serve(self, chain: Chain) -> None:
        """A request, at once from beginning to end."""
        now = time.monotonic()
        everybody = (1 << len(self.fleet.replicas)) - 1
        made = self.placer.place(chain, SPANS[len(chain)] + 9, "m", everybody, "", now)
        self.placer.first_token(made, now)
        self.placer.finished(made, now)


def told_bytes(node: Node) -> int:
    """Sent to the stream, commands and all, without what the keeper writes."""
    return node.carrier._connections["telling"].sent


def chain(number: int, blocks: int = BLOCKS) -> Chain:
    """A chain like no other."""
    hashed = xxhash.xxh3_64_intdigest
    # Long enough a text: of three bytes, hashes under seeds that are close collide.
    return array("Q", [hashed(b"block %10d of %10d" % (k, number)) for k in range(blocks)])


async def info(url: str, section: str) -> dict[str, str]:
    """A section of INFO."""
    connection = await Link(parse(url), "", "", "bench").open()
    told = await connection.call("INFO", section)
    connection.close()
    assert isinstance(told, bytes)
    lines = told.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


async def visibility(url: str, count: int = 5000) -> dict[str, float]:
    """500 requests a second at one router; when does another one's index know of each?"""
    a, b = Node(url), Node(url)
    await a.shared.ready(5)
    await b.shared.ready(5)
    sent: dict[int, float] = {}
    lags: list[float] = []
    heard = b.placer.heard_routed

    def listen(
        slot: int, told: Chain, size: int, uncached: float, tokens: float, now: float
    ) -> None:
        heard(slot, told, size, uncached, tokens, now)
        lags.append(time.monotonic() - sent[told[0]])

    b.placer.heard_routed = listen  # type: ignore[method-assign]
    before = int((await info(url, "stats"))["total_commands_processed"])
    wire = told_bytes(a)
    start = time.monotonic()
    for number in range(count):
        delay = start + number / RATE - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        one = chain(number)
        sent[one[0]] = time.monotonic()
        a.serve(one)
    for _ in range(50):
        await asyncio.sleep(0.1)
        if len(lags) == count:
            break
    lags.sort()
    commands = int((await info(url, "stats"))["total_commands_processed"]) - before
    connection = await Link(parse(url), "", "", "bench").open()
    stream = await connection.call("MEMORY", "USAGE", a.carrier.keys.facts, "SAMPLES", 0)
    connection.close()
    assert isinstance(stream, int)
    results = {
        "visibility_p50_ms": lags[len(lags) // 2] * 1e3,
        "visibility_p99_ms": lags[len(lags) * 99 // 100] * 1e3,
        "commands_per_request_two_routers": commands / count,
        "commands_per_request_sender": a.carrier.commands / count,
        "wire_bytes_per_request": (told_bytes(a) - wire) / count,
        "wire_bytes_per_block": (told_bytes(a) - wire) / count / BLOCKS,
        "stream_bytes_per_block": stream / count / BLOCKS,
        "missed": float(count - len(lags)),
    }
    await a.shared.stop()
    await b.shared.stop()
    return results


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
    """A router that starts with a million blocks in Redis."""
    a = Node(url, replicas=16)
    await a.shared.ready(5)
    for number in range(blocks // BLOCKS):
        a.index.record(number % 16, chain(number), time.monotonic())
    keeper = Keeper(a.carrier, a.shared)
    connection = await a.carrier.link.open()
    began = time.process_time()
    wall = time.monotonic()
    await keeper.write(connection)
    wrote = time.process_time() - began
    wall = time.monotonic() - wall
    size = 0
    for name in a.shared.names.values():
        told = await connection.call("MEMORY", "USAGE", a.carrier.keys.map(name))
        assert isinstance(told, int)
        size += told
    connection.close()
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
    """CPU of one XADD of 600 bytes: this project's connection, and redis-py's where it is."""
    code = """
import asyncio, os, sys, time, uvloop
sys.path.insert(0, ".")
host, port = "127.0.0.1", int(sys.argv[1])
blob = os.urandom(600)
command = ("XADD", "s", "MAXLEN", "~", 1000, "*", "f", blob)
async def own():
    from router.state.resp import Connection
    _, c = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return lambda: c.call(*command)
async def redis_py():
    from redis.asyncio.connection import Connection
    c = Connection(host=host, port=port, socket_timeout=1)
    await c.connect()
    async def call():
        await c.send_command(*command)
        await c.read_response()
    return call
async def main():
    for make in (own, redis_py):
        try:
            call = await make()
        except ImportError:
            continue
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = ("visibility", "sessions", "load", "cpu", "client")
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
                results |= uvloop.run(
                    {"visibility": visibility, "sessions": sessions, "load": load}[name](url)
                )
    for name, value in results.items():
        print(f"{name:<42}{value:>14.3f}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    targets = {
        "visibility_p50_ms": 20.0,
        "visibility_p99_ms": 100.0,
        "commands_per_request_two_routers": 0.5,
        "load_seconds": 5.0,
        "cpu_ratio_at_500": 1.25,
        "cpu_ratio_at_2000": 1.25,
    }
    return int(any(results.get(name, 0.0) > most for name, most in targets.items()))


if __name__ == "__main__":
    sys.exit(main())
