"""What the queue adds to a request's way when nothing waits: python -m bench.queue_cost

CPU microseconds for each request from its coming to its end, in a loop: the placer alone, and with
the queue in front of it. The last columns are what the queue adds: the median over rounds of the
difference, both taking turns. Aims: 4 us without a door; at 64 replicas 15 us for the door.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import median

from router.config.queueing import QueueSettings
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt.prompt import Prompt
from router.prompt.spans import SPANS
from router.queue.queue import Queue
from router.queue.session import Tail
from router.queue.ticket import Refusal, Ticket
from router.scheduling.placer import Placement, Placer
from router.types import Chain, Load

SIZES = (8, 64)
REQUESTS = 1500
BLOCKS = 16
"""Of a prompt of 4 KB."""
AIMS = {
    "queue, no door": (4.0, 4.0),
    "door, new session": (None, 15.0),
    "door, later step": (None, 15.0),
}


class Asker:
    """A request that is placed, and sent nowhere. Implements ``router.queue.ticket.Owner``."""

    __slots__ = ("_everybody", "_placer", "_prompt")

    def __init__(self, placer: Placer, prompt: Prompt, everybody: int) -> None:
        self._placer = placer
        self._prompt = prompt
        self._everybody = everybody

    def eligible(self) -> int:
        return self._everybody

    def uncached(self) -> float:
        return self._placer.uncached(self._prompt)

    def tail_digest(self, blocks: int, length: int) -> int:
        return 7

    def place(self, eligible: int, now: float) -> Placement | None:
        return self._placer.place(self._prompt, eligible, now)

    def unplace(self, placement: Placement, now: float) -> None:
        placement.failed(now)

    def send(self, placement: Placement, now: float) -> None: ...

    def refuse(self, refusal: Refusal, now: float) -> None: ...


class Router:
    """One with so many replicas. Each request is served at once, from beginning to end."""

    def __init__(self, replicas: int, door: float) -> None:
        self.everybody = (1 << replicas) - 1
        self.loads = [Load(kv_capacity=1e12) for _ in range(replicas)]
        index = ByteIndex(SPANS)
        for slot in range(replicas):
            index.add_replica(slot, 1 << 40)
        policy = load_policy("cache_aware")
        policy.members({slot: f"replica-{slot}" for slot in range(replicas)})
        self.placer = Placer(index, policy, self.loads, learn_speed=False)
        self.queue = Queue(self.loads, QueueSettings(queue_door=door))
        for _ in range(100):  # what begins like anything goes on
            self.queue.door.sessions.beginnings.began(0)
            self.queue.door.sessions.beginnings.went_on(0)
        self.queue.tick(0.0)

    def alone(self, chain: Chain, now: float, session: str, tail: Tail | None) -> None:
        """Without a queue."""
        prompt = Prompt(model="m", chain=chain, size=SPANS[BLOCKS] + 9, stream=True)
        placement = Asker(self.placer, prompt, self.everybody).place(self.everybody, now)
        assert placement is not None
        placement.first_token(now)
        placement.finished(now)

    def queued(self, chain: Chain, now: float, session: str, tail: Tail | None) -> None:
        """Through the queue."""
        prompt = Prompt(model="m", chain=chain, size=SPANS[BLOCKS] + 9, stream=True)
        asker = Asker(self.placer, prompt, self.everybody)
        ticket = Ticket(asker, now, chain, prompt.size, session=session, tail=tail)
        queue = self.queue
        queue.offer(ticket, now)
        placement = ticket.placement
        assert placement is not None
        placement.first_token(now)
        queue.first_token(ticket, now)
        placement.finished(now)
        queue.ended(ticket, now, 100.0)


def chains(count: int, rng: random.Random) -> list[Chain]:
    return [array("Q", (rng.getrandbits(64) for _ in range(BLOCKS))) for _ in range(count)]


def cost_us(
    serve: Callable[[Chain, float, str, Tail | None], None],
    made: list[Chain],
    names: list[str],
    tails: list[Tail | None],
) -> float:
    """CPU microseconds of one request."""
    start = time.process_time()
    now = 1.0
    for chain, name, tail in zip(made, names, tails, strict=True):
        now += 1e-4
        serve(chain, now, name, tail)
    return (time.process_time() - start) * 1e6 / len(made)


def measure(replicas: int, rounds: int) -> dict[str, float]:
    rng = random.Random(replicas)
    none: list[Tail | None] = [None] * REQUESTS
    found: dict[str, list[float]] = {}
    routers = {door: Router(replicas, door) for door in (0.0, 0.9)}
    for turn in range(rounds + 1):
        new = [f"{turn}-{number}" for number in range(REQUESTS)]
        same = [f"0-{number}" for number in range(REQUESTS)]
        unnamed = [""] * REQUESTS
        cases: list[tuple[str, float, list[str], bool]] = [
            ("queue, no door", 0.0, unnamed, False),
            ("door, new session", 0.9, new, False),
            ("door, later step", 0.9, same, False),
            ("door, by prompt", 0.9, unnamed, True),
        ]
        for name, door, names, by_prompt in cases:
            router = routers[door]
            made = chains(REQUESTS, rng)
            tails = [Tail(each[-1], 9, 7) for each in made] if by_prompt else none
            alone = cost_us(router.alone, made, names, none)
            made = chains(REQUESTS, rng)
            tails = [Tail(each[-1], 9, 7) for each in made] if by_prompt else none
            more = cost_us(router.queued, made, names, tails) - alone
            if turn:  # the first warms up
                found.setdefault("placer alone", []).append(alone)
                found.setdefault(name, []).append(more)
    return {name: median(values) for name, values in found.items()}


def main() -> int:
    """The command `python -m bench.queue_cost`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    results = [measure(size, args.rounds) for size in SIZES]
    missed = 0
    print(f"{'us a request':<20}" + "".join(f"{f'{size} replicas':>14}" for size in SIZES))
    for name in results[0]:
        cells = [each[name] for each in results]
        aims = AIMS.get(name, (None, None))
        over = any(a is not None and cell > a for cell, a in zip(cells, aims, strict=True))
        missed += over
        print(f"{name:<20}" + "".join(f"{each:>14.1f}" for each in cells) + "  missed" * over)
    if args.json is not None:
        told = {str(size): each for size, each in zip(SIZES, results, strict=True)}
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
