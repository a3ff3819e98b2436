"""CPU of the router's process for each request, beside nginx as a plain proxy: python -m bench proxy

All stand in front of the same replicas and get the same bytes. What is compared is CPU time of the
proxy's own process (user and system), not wall time, so that a busy machine shifts all alike; rounds
of all of them take turns. Each case is measured at a steady rate that all of them reach, and with
--flat-out as fast as each can. Starlette with httpx is the least that is written in an afternoon;
routers of others come with `python -m bench peers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from bench.bodies import bodies
from bench.drive import drive
from bench.proxies import (
    PEERS,
    Cpu,
    cpu,
    install_peers,
    nginx,
    peer,
    process,
    starlette,
    warmroute,
)

REPLICAS: Final = 8
OURS: Final = "warmroute"
ROUND_ROBIN: Final = "warmroute round_robin"

Starts = Callable[[list[int]], AbstractContextManager[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Case:
    """What is sent, and what it is to cost at most."""

    made: list[bytes]
    connections: int
    rate: float
    """Requests a second."""
    count: int
    """Requests a round."""
    of_nginx: float
    """The aim: CPU as a multiple of nginx's."""
    of_peers: float
    """The aim: CPU as a share of the cheapest peer's."""


def cases() -> dict[str, Case]:
    """By name."""
    return {
        "4 KB": Case(bodies(4_000, 300), 32, 2000.0, 2000, 3.0, 0.6),
        "64 KB": Case(bodies(64_000, 120), 32, 800.0, 800, 3.0, 0.6),
        "400 KB": Case(bodies(400_000, 40), 16, 100.0, 150, 2.5, 0.6),
        "100 chunks": Case(bodies(4_000, 300, stream=True), 64, 100.0, 200, 2.0, 0.8),
        "1,000 chunks": Case(bodies(4_000, 300, stream=True, answer=1000), 64, 10.0, 20, 2.0, 0.8),
    }


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one request, in microseconds, and how many there were in a second."""

    total: float
    user: float
    system: float
    per_second: float


class Samples:
    """What the rounds of one proxy in one case have cost."""

    def __init__(self) -> None:
        self.totals: list[float] = []
        self.user = self.system = 0.0
        self.rates: list[float] = []

    def add(self, used: Cpu, count: int, seconds: float) -> None:
        self.totals.append(used.total / count * 1e6)
        self.user += used.user
        self.system += used.system
        self.rates.append(count / seconds)

    def cost(self) -> Cost:
        """The median round; ticks tell which share of it was the user's."""
        total, ticks = statistics.median(self.totals), self.user + self.system
        user = total * self.user / ticks if ticks else 0.0
        return Cost(total, user, total - user, statistics.median(self.rates))


def measure(
    factor: float, rounds: int, made: dict[str, Starts], flat_out: bool, only: list[str]
) -> dict[str, dict[str, Cost]]:
    """Case -> proxy -> its cost."""
    chosen = {name: case for name, case in cases().items() if not only or name in only}
    with process(sys.executable, "-m", "bench.upstream", str(REPLICAS), read=True) as upstream:
        assert upstream.stdout is not None
        ports = [int(p) for p in upstream.stdout.readline().split()]
        samples = {case: {name: Samples() for name in made} for case in chosen}
        with ExitStack() as stack:
            running = {name: stack.enter_context(start(ports)) for name, start in made.items()}
            for turn in range(rounds + 1):
                for title, case in chosen.items():
                    for name, (port, pid) in running.items():
                        many = max(1, int(case.count * factor))
                        pace: float | None = None if flat_out else case.rate
                        if name.startswith("starlette"):
                            # It reaches no such rates.
                            many, pace = max(1, many // 5), case.rate / 10
                        before, began = cpu(pid), time.perf_counter()
                        uvloop.run(drive(port, case.made, many, case.connections, pace))
                        seconds, used = time.perf_counter() - began, cpu(pid) - before
                        if turn:  # the first warms all of them
                            samples[title][name].add(used, many, seconds)
    return {
        case: {name: found.cost() for name, found in by.items()} for case, by in samples.items()
    }


def show(results: dict[str, dict[str, Cost]]) -> None:
    """A table of each case."""
    aims = cases()
    for case, by in results.items():
        aim = aims[case]
        print(
            f"\n{case:<34}{'user us':>9}{'system us':>11}{'both':>9}{'of nginx':>10}{'a second':>10}"
        )
        for name, cost in by.items():
            print(
                f"{name:<34}{cost.user:>9.1f}{cost.system:>11.1f}{cost.total:>9.1f}"
                f"{cost.total / by['nginx'].total:>10.2f}{cost.per_second:>10.0f}"
            )
        print(_verdict("nginx", by[OURS].total / by["nginx"].total, aim.of_nginx))
        peers = [cost.total for name, cost in by.items() if name in PEERS]
        if peers:
            print(_verdict("the cheapest peer", by[OURS].total / min(peers), aim.of_peers))


def _verdict(than: str, ratio: float, aim: float) -> str:
    return f"  {ratio:.2f} of {than}, aim {aim}{': missed' if ratio > aim else ''}"


def main(*, peers: bool = False) -> int:
    """peers: beside routers of others too, which are installed first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="requests a round, as a factor")
    parser.add_argument("--flat-out", action="store_true", help="as fast as each can")
    parser.add_argument("--case", action="append", default=[], choices=list(cases()))
    parser.add_argument("--json")
    parser.add_argument("--without-starlette", action="store_true")
    parser.add_argument("--peers", default=".venv-peers", help="where they are installed")
    args = parser.parse_args()
    made: dict[str, Starts] = {"nginx": nginx, OURS: warmroute}
    if peers:
        folder = Path(args.peers).absolute()
        install_peers(folder)
        made[ROUND_ROBIN] = lambda ports: warmroute(ports, "--policy", "round_robin")
        made |= {name: partial(peer, name, folder) for name in PEERS}
    elif not args.without_starlette:
        made["starlette+httpx"] = starlette
    results = measure(args.size, args.rounds, made, args.flat_out, args.case)
    how = "as fast as each can" if args.flat_out else "at a steady rate"
    print(f"CPU of the proxy's process for a request, {how}, median of {args.rounds} rounds")
    show(results)
    if args.json:
        told = {
            case: {
                name: {"user_us": c.user, "system_us": c.system, "us": c.total, "rps": c.per_second}
                for name, c in by.items()
            }
            for case, by in results.items()
        }
        Path(args.json).write_text(json.dumps({"flat_out": args.flat_out, "cases": told}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
