"""What the prefix index costs: memory a block, lookup, recording, eviction, forgetting.

    python -m bench.index                    # ten million blocks: about a minute, under 1.5 GB
    python -m bench.index --blocks 1000000   # quicker
    python -m bench.index --json FILE        # the same figures as JSON

Traffic is made up but shaped like conversations: applications chosen by Zipf's law, each with a
system prompt and a few sets of tool schemas behind it; sessions that grow turn by turn and now and
then change replicas; each turn recorded twice, as routed and with its answer. The reference is the
plain way, one ordered dict of blocks for each replica. Memory is resident memory, read before and
after. Times are CPU time of the calls alone; medians and the largest are wall time, on a machine
that should have nothing else to do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import TypeAlias

from router.index import ByteIndex
from router.prompt.spans import SPANS
from router.types import Chain

REPLICAS = 16
APPLICATIONS = 300
ACTIVE = 2000
"""How many sessions run at the same time."""
MOVES = 0.05
"""How many turns go to another replica than the session's last."""
UNBOUNDED = 1 << 60

Figures: TypeAlias = dict[str, float]


def resident() -> int:
    """The resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Traffic:
    """Conversations without end: (slot, chain as routed, chain with the answer)."""

    def __init__(self, seed: int = 1, replicas: int = REPLICAS) -> None:
        self.rng = random.Random(seed)
        self.replicas = replicas
        self.heads = [self.head() for _ in range(APPLICATIONS)]
        self.popular = [1 / (rank + 1) for rank in range(APPLICATIONS)]
        self.sessions = [self.session() for _ in range(ACTIVE)]

    def fresh(self, count: int) -> Chain:
        """Block hashes that nobody has seen before."""
        return array("Q", self.rng.randbytes(8 * count))

    def head(self) -> list[Chain]:
        """One application: a system prompt, with one of a few sets of tools after it."""
        system = self.fresh(self.rng.randint(4, 40))
        return [system + self.fresh(self.rng.randint(5, 60)) for _ in range(self.rng.randint(1, 4))]

    def session(self) -> Iterator[tuple[int, Chain, Chain]]:
        rng = self.rng
        head = rng.choice(rng.choices(self.heads, self.popular)[0])
        turns = 1 if rng.random() < 0.3 else min(1 + int(rng.expovariate(1 / 15)), 80)
        grow = [(rng.randint(1, 8), rng.randint(1, 6)) for _ in range(turns)]
        chain = head + self.fresh(sum(asked + answered for asked, answered in grow))
        slot = rng.randrange(self.replicas)
        depth = len(head)
        for asked, answered in grow:
            if rng.random() < MOVES:
                slot = rng.randrange(self.replicas)
            routed = chain[: depth + asked]
            depth += asked + answered
            yield slot, routed, chain[:depth]

    def __iter__(self) -> Iterator[tuple[int, Chain, Chain]]:
        while True:
            at = self.rng.randrange(ACTIVE)
            turn = next(self.sessions[at], None)
            while turn is None:
                self.sessions[at] = self.session()
                turn = next(self.sessions[at], None)
            yield turn


class Plain:
    """The reference: every block of every replica an entry of its own."""

    def __init__(self) -> None:
        self.rooms: list[OrderedDict[int, float]] = [OrderedDict() for _ in range(REPLICAS)]

    def match(self, chain: Chain) -> list[int]:
        depths = []
        for room in self.rooms:
            depth = 0
            for block in chain:
                if block not in room:
                    break
                depth += 1
            depths.append(depth)
        return depths

    def record(self, slot: int, chain: Chain, now: float) -> None:
        room = self.rooms[slot]
        for block in reversed(chain):
            room[block] = now
            room.move_to_end(block)


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """The seconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def micros(call: Callable[[], object], times: int = 300) -> float:
    """The median time of a call, in microseconds."""
    return median(timed(call) for _ in range(times)) * 1e6


def collecting() -> float:
    """CPU milliseconds of a full garbage collection, the least of several."""
    return min(timed(gc.collect, time.process_time) for _ in range(5)) * 1e3


class Pace:
    """CPU seconds and index sizes over many recordings."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.blocks = 0

    def feed(self, index: ByteIndex | Plain, turns: list[tuple[int, Chain, Chain]]) -> None:
        record = index.record
        start = time.process_time()
        for at, (slot, routed, answered) in enumerate(turns, self.calls):
            record(slot, routed, float(at))
            record(slot, answered, float(at))
        self.seconds += time.process_time() - start
        self.calls += 2 * len(turns)
        self.blocks += sum(len(routed) + len(answered) for _, routed, answered in turns)

    def report(self, name: str, out: Figures) -> None:
        out[f"{name}: us a recording"] = self.seconds / self.calls * 1e6
        out[f"{name}: chain blocks a second"] = self.blocks / self.seconds


def conversations(blocks: int) -> Figures:
    """Fill an index with conversations, then let it evict, then take it apart."""
    out: Figures = {}
    turns = iter(Traffic())
    list(islice(turns, 2 * ACTIVE))  # so that sessions in progress have made their chains
    gc.collect()
    before = resident()
    index = ByteIndex(SPANS)
    for slot in range(REPLICAS):
        index.add_replica(slot, UNBOUNDED)
    started = time.perf_counter()
    pace = Pace()
    while index.blocks < blocks:
        pace.feed(index, list(islice(turns, 2000)))
    gc.collect()
    out["fill seconds, traffic included"] = time.perf_counter() - started
    out["blocks"] = index.blocks
    out["blocks, counted at each holder"] = sum(index.held(slot) for slot in range(REPLICAS))
    out["nodes"] = len(index._nodes)
    out["resident bytes a block"] = (resident() - before) / index.blocks
    out["nbytes() a block"] = index.nbytes() / index.blocks
    pace.report("growing", out)
    out["growing: new blocks a second"] = index.blocks / pace.seconds
    out["gc.collect ms, full index"] = collecting()
    lookups = [routed for _, routed, _ in islice(turns, 2000)]
    out["conversation lookup us, median"] = median(
        timed(partial(index.match, chain)) * 1e6 for chain in lookups
    )

    for slot in range(REPLICAS):
        index.resize(slot, index.room(slot).used)
    full = index.blocks
    pace = Pace()
    for _ in range(25):
        pace.feed(index, list(islice(turns, 2000)))
    pace.report("evicting", out)
    each = [timed(partial(index.record, *turn[:2], 1e6)) for turn in islice(turns, 20_000)]
    out["evicting: p99 us"] = quantiles(each, n=100)[98] * 1e6
    out["evicting: max us"] = max(each) * 1e6
    out["evicting: blocks kept"] = index.blocks / full
    out["forget: blocks"] = index.held(0)
    out["forget: nodes"] = len(index.room(0).held)
    out["forget: ms"] = timed(partial(index.forget, 0)) * 1e3
    for slot in range(1, REPLICAS):
        index.remove_replica(slot)
    out["blocks left when all replicas are gone"] = index.blocks
    out["gc.collect ms, empty index"] = collecting()
    return out


def long_chains() -> Figures:
    """Measure chains of 8,000 blocks in the index and in the reference."""
    out: Figures = {}
    traffic = Traffic(seed=2)
    index, plain = ByteIndex(SPANS), Plain()
    for slot in range(REPLICAS):
        index.add_replica(slot, UNBOUNDED)
    chains = [traffic.fresh(8000) for _ in range(300)]
    now = time.perf_counter
    new = sum(timed(partial(index.record, 1, chain, now())) for chain in chains)
    again = [timed(partial(index.record, 1, chain, now())) for chain in chains]
    out["new 8,000-block chains: blocks a second"] = 8000 * len(chains) / new
    out["touching an 8,000-block chain: us"] = median(again) * 1e6
    chain = chains[0]
    plain.record(1, chain, 0.0)
    out["8,000-block lookup us, one node"] = micros(lambda: index.match(chain))
    for slot, cut in enumerate(range(800, 8000, 800)):  # branches and holders all along it
        index.record(slot % REPLICAS, chain[:cut] + traffic.fresh(50), now())
        plain.record(slot % REPLICAS, chain[:cut], now())
    out["8,000-block lookup us, 9 branches"] = micros(lambda: index.match(chain))
    parted = chain[:7777] + traffic.fresh(223)
    out["8,000-block lookup us, parts inside a run"] = micros(lambda: index.match(parted))
    out["8,000-block lookup us, reference"] = micros(lambda: plain.match(chain), 30)
    again = [timed(lambda: plain.record(1, chain, now())) for _ in range(30)]
    out["touching an 8,000-block chain: us, reference"] = median(again) * 1e6
    return out


def shared_by_all(replicas: int = 1000) -> Figures:
    """Measure one system prompt that a thousand replicas hold."""
    out: Figures = {}
    traffic = Traffic(seed=3)
    index = ByteIndex(SPANS)
    prompt = traffic.fresh(100)
    for slot in range(replicas):
        index.add_replica(slot, UNBOUNDED)
        index.record(slot, prompt + traffic.fresh(20), 0.0)
    chain = prompt + traffic.fresh(20)
    out["lookup us, prompt on 1,000 replicas"] = micros(lambda: index.match(chain))
    cut = prompt[:50] + traffic.fresh(20)
    out["splitting it us"] = timed(lambda: index.record(3, cut, 1.0)) * 1e6
    return out


def short_prompts(prompts: int = 100_000, size: int = 8) -> Figures:
    """The worst case for memory: short prompts with nothing in common."""
    out: Figures = {}
    traffic = Traffic(seed=4)
    gc.collect()
    before = resident()
    index = ByteIndex(SPANS)
    index.add_replica(0, UNBOUNDED)
    for at in range(prompts):
        index.record(0, traffic.fresh(size), float(at))
    gc.collect()
    out[f"unique prompts of {size} blocks: resident bytes a block"] = (
        resident() - before
    ) / index.blocks
    out[f"unique prompts of {size} blocks: nbytes() a block"] = index.nbytes() / index.blocks
    return out


def reference_memory(blocks: int = 500_000) -> Figures:
    """The memory of the reference with the same conversations."""
    out: Figures = {}
    traffic = Traffic()
    gc.collect()
    before = resident()
    plain = Plain()
    turns = iter(traffic)
    pace = Pace()
    while sum(map(len, plain.rooms)) < blocks:
        pace.feed(plain, list(islice(turns, 500)))
    held = sum(map(len, plain.rooms))
    out["reference: resident bytes a block of a holder"] = (resident() - before) / held
    pace.report("reference", out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    sections: list[Callable[[], Figures]] = [partial(conversations, args.blocks)]
    sections += [long_chains, shared_by_all, short_prompts, reference_memory]
    out: dict[str, float] = {}
    # A process for each, since memory that one has freed would not show in the next one's figures.
    with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for section in sections:
            for name, value in pool.apply(section).items():
                out[name] = value
                print(f"{name:52} {value:16,.1f}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(out, indent=2) + "\n")


if __name__ == "__main__":
    main()
