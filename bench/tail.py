"""The tail of the router's own delay while everything else goes on: python -m bench.tail

One router with its usual settings gets 1,000 requests a second of 4 KB. Meanwhile its metrics are
scraped every second, it shares its state through a real Redis, a file tells it of another fleet
every two seconds, and two bodies a second of 10 MB come. Told are the router's own figures, of the
time that was measured alone: `warmroute_overhead_seconds` (from a request's last byte to its first
byte on the way to a replica), `warmroute_loop_delay_seconds`, and memory at begin and end.

    python -m bench.tail                          # half a minute, after five seconds to warm up
    python -m bench.tail --seconds 600            # does it grow?
    python -m bench.tail --without big            # what is it without the large bodies?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import uvloop

from bench.bodies import bodies
from bench.drive import drive, request_bytes
from bench.memory import resident
from bench.proxies import cpu, free_port, process, wait_for
from bench.state import redis

REPLICAS: Final = 16
RATE: Final = 1000.0
WARM_UP_S: Final = 5.0
FLEET_CHANGE_S: Final = 2.0
BIG_INTERVAL_S: Final = 0.5
BIG_BYTES: Final = 10_000_000
AIM_P99_S: Final = 1e-3
PARTS: Final = ("scrapes", "redis", "fleet", "big")

_BUCKET = re.compile(r'^(\w+)_bucket\{(?:.*,)?le="([^"]+)"\} (\S+)$', re.M)


@dataclass(frozen=True, slots=True)
class Tail:
    """What came of it. Seconds, and bytes."""

    requests: int
    p50: float
    p99: float
    p999: float
    loop_delay_p99: float
    cpu_share: float
    """Of a core."""
    resident_before: int
    resident_after: int


def buckets(page: str, name: str) -> dict[float, float]:
    """Upper bound -> how many were at most as long, all series together."""
    found: dict[float, float] = {}
    for metric, bound, count in _BUCKET.findall(page):
        if metric == name:
            found[float(bound)] = found.get(float(bound), 0.0) + float(count)
    return dict(sorted(found.items()))


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Within the bucket in which it is, evenly spread: as Prometheus' histogram_quantile."""
    counts = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    wanted = share * max(counts.values(), default=0.0)
    low = below = 0.0
    for bound, count in counts.items():
        if count >= wanted and count > below:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


async def scraped(admin: int) -> str:
    def read() -> bytes:
        with urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=30) as answer:
            return bytes(answer.read())

    return (await asyncio.to_thread(read)).decode()


async def scrapes(admin: int) -> None:
    while True:
        await asyncio.sleep(1.0)
        await scraped(admin)


async def change_fleet(path: Path, ports: list[int]) -> None:
    """One replica leaves and comes back."""
    turn = 0
    while True:
        write_fleet(path, ports[: len(ports) - turn % 2])
        turn += 1
        await asyncio.sleep(FLEET_CHANGE_S)


def write_fleet(path: Path, ports: list[int]) -> None:
    whole = path.with_suffix(".new")
    whole.write_text(json.dumps([f"http://127.0.0.1:{port}" for port in ports]))
    whole.replace(path)


async def send_big(port: int) -> None:
    large = request_bytes(bodies(BIG_BYTES, 1)[0])
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(large)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await asyncio.sleep(BIG_INTERVAL_S)


async def measure(seconds: float, without: list[str]) -> Tail:
    """Start it all, warm up, and measure."""
    with ExitStack() as stack:
        upstream = stack.enter_context(
            process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True)
        )
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        fleet = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fleet"
        write_fleet(fleet, ports)
        port, admin = free_port(), free_port()
        flags = ["--discovery", "file", "--discovery-file", str(fleet)]
        if "redis" not in without:
            flags += ["--state", stack.enter_context(redis())]
        router = stack.enter_context(
            process(
                *(sys.executable, "-m", "router.cli.main", "serve", "--port", str(port)),
                *("--admin-port", str(admin), *flags),
            )
        )
        wait_for(port)
        await asyncio.sleep(2.0)
        beside = []
        if "scrapes" not in without:
            beside.append(scrapes(admin))
        if "fleet" not in without:
            beside.append(change_fleet(fleet, ports))
        if "big" not in without:
            beside.append(send_big(port))
        tasks = [asyncio.create_task(work) for work in beside]
        made = bodies(4_000, 3000)
        await drive(port, made, int(RATE * WARM_UP_S), 64, RATE)
        before, used, size = await scraped(admin), cpu(router.pid), resident(router.pid)
        began = asyncio.get_running_loop().time()
        count = int(RATE * seconds)
        await drive(port, made, count, 64, RATE)
        lasted = asyncio.get_running_loop().time() - began
        after, used = await scraped(admin), cpu(router.pid) - used
        for task in tasks:
            if task.done():
                task.result()  # what it failed with
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        delay = "warmroute_overhead_seconds"
        first, last = buckets(before, delay), buckets(after, delay)
        loop = "warmroute_loop_delay_seconds"
        return Tail(
            requests=int(max(last.values()) - max(first.values(), default=0.0)),
            p50=quantile(first, last, 0.5),
            p99=quantile(first, last, 0.99),
            p999=quantile(first, last, 0.999),
            loop_delay_p99=quantile(buckets(before, loop), buckets(after, loop), 0.99),
            cpu_share=used.total / lasted,
            resident_before=size,
            resident_after=resident(router.pid),
        )


def main() -> int:
    """Exit status 1 where the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--without", action="append", default=[], choices=PARTS)
    parser.add_argument("--json")
    args = parser.parse_args()
    tail = uvloop.run(measure(args.seconds, args.without))
    print(f"{tail.requests} requests, load of the machine {os.getloadavg()[0]:.1f}")
    print(
        f"the router's own delay: p50 {tail.p50 * 1e6:.0f} us, p99 {tail.p99 * 1e6:.0f} us "
        f"(aim {AIM_P99_S * 1e6:.0f}), p99.9 {tail.p999 * 1e3:.1f} ms"
    )
    print(f"the loop is late by, p99: {tail.loop_delay_p99 * 1e3:.1f} ms")
    print(f"CPU: {tail.cpu_share:.0%} of a core")
    print(f"resident: {tail.resident_before / 1e6:.0f} -> {tail.resident_after / 1e6:.0f} MB")
    if args.json:
        Path(args.json).write_text(json.dumps(asdict(tail)))
    return int(tail.p99 > AIM_P99_S)


if __name__ == "__main__":
    sys.exit(main())
