"""What keys, limits and isolation cost: CPU of the router's process for each request, over without.

Routers without tenants, with keys, with limits in memory besides, and with isolation besides (and,
where a redis-server is installed, with limits in Redis) take turns in front of the same replicas.

Two processes of one kind may differ by 10 us a request for as long as they live. So there are two
routers of each kind; every other round goes through them backward; of each kind the median of all
rounds and the least are told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import uvloop

from bench.bodies import bodies
from bench.drive import drive
from bench.proxies import cpu_seconds, process, warmroute
from bench.proxy import REPLICAS
from bench.state import redis

TARGET_US = 10.0
PROCESSES = 2
"""Routers of each kind."""
KEYS = """
tenants:
  acme:
    keys: [{sha256: %s}]
"""
FILE = """
tenants:
  acme:
    limits: {requests_per_minute: 1000000000, input_tokens_per_minute: 1000000000000,
             output_tokens_per_minute: 1000000000000, concurrent_requests: 1000000,
             tokens_per_day: 1000000000000}
    key_limits: {requests_per_minute: 1000000000}
    keys: [{sha256: %s}]
"""


def measure(rounds: int, count: int, with_redis: bool) -> dict[str, dict[str, tuple[float, float]]]:
    """Case -> router -> CPU microseconds a request, the median and the least of its rounds.

    with_redis: with limits in a Redis too.
    """
    cases = {
        "4 KB": (bodies(4_000, 300), 32, 1000.0, count),
        "64 KB": (bodies(64_000, 120), 32, 400.0, count // 2),
    }
    os.environ["WARMROUTE_ISOLATION_SECRET"] = "0123456789abcdef" * 2
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder) / "tenants.yaml"
        file.write_text(FILE % sha256(b"sk-x").hexdigest())
        tenants = ("--tenants", str(file))
        keys = Path(folder) / "keys.yaml"
        keys.write_text(KEYS % sha256(b"sk-x").hexdigest())
        given: dict[str, tuple[str, ...]] = {
            "without": (),
            "keys": ("--tenants", str(keys)),
            "keys, limits": tenants,
            # The replicas here tell the same usage whatever they get: they leak.
            "and isolation": (*tenants, "--isolate", "tenant", "--isolation-leak", "flag"),
        }
        if with_redis:
            url = stack.enter_context(redis())
            given["without, Redis"] = ("--state", f"{url}/0")
            given["all, Redis"] = (*given["and isolation"], "--state", f"{url}/1")
        upstream = stack.enter_context(
            process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True)
        )
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        running = [
            (name, *stack.enter_context(warmroute(ports, *flags)))
            for _ in range(PROCESSES)
            for name, flags in given.items()
        ]
        samples: dict[str, dict[str, list[float]]] = {
            case: {name: [] for name in given} for case in cases
        }
        for turn in range(rounds + 1):
            for case, (sent, connections, rate, many) in cases.items():
                for name, port, pid in running if turn % 2 else reversed(running):
                    before = cpu_seconds(pid)
                    uvloop.run(drive(port, sent, many, connections, rate))
                    if turn:
                        samples[case][name].append((cpu_seconds(pid) - before) / many * 1e6)
    return {
        case: {name: (statistics.median(values), min(values)) for name, values in by.items()}
        for case, by in samples.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=1500, help="requests a round")
    parser.add_argument("--no-redis", action="store_true", help="limits in memory only")
    parser.add_argument("--json")
    args = parser.parse_args()
    with_redis = not args.no_redis and shutil.which("redis-server") is not None
    results = measure(args.rounds, args.count, with_redis)
    missed = False
    print(f"CPU of the router, microseconds a request; {PROCESSES} routers, {args.rounds} rounds")
    print(f"{'':<26}{'median':>8}{'over':>8}{'least':>8}{'over':>8}")
    for case, by in results.items():
        for name, (median, least) in by.items():
            base = by["without, Redis" if name.endswith("Redis") else "without"]
            over = median - base[0]
            missed |= over > TARGET_US
            print(
                f"{case:<8}{name:<18}{median:>8.1f}{over:>+8.1f}{least:>8.1f}{least - base[1]:>+8.1f}"
                f"  (at most {TARGET_US:+.0f})"
            )
    if args.json:
        Path(args.json).write_text(json.dumps(results))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
