"""What telemetry costs: python -m bench.telemetry

Times are the best of several rounds, also as multiples of an empty function call, which tells more
about the code and less about the machine.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import generate_latest

from router.telemetry import lines
from router.telemetry.access_log import AccessLog
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.record import Finished
from router.telemetry.telemetry import Telemetry
from router.types import Load

REPLICAS = 64
MODELS = 3
ROUNDS = 7


class Breaker:
    state = "closed"


class Replica:
    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.name = f"10.0.0.{slot}:8000"
        self.state = "ready"
        self.load = Load()
        self.breaker = Breaker()
        self.kv_tokens = 100_000
        self.kv_tokens_known = True


class Fleet:
    replicas = tuple(Replica(slot) for slot in range(REPLICAS))
    usable = (1 << REPLICAS) - 1


class Index:
    blocks = 100_000

    def nbytes(self) -> int:
        return 3_000_000

    def share(self, slot: int) -> float:
        return slot / REPLICAS


CONSIDERED = tuple((slot, 3000.0, 0.5, 100.0, 2) for slot in range(8))


def record(slot: int, model: str = "model-0") -> Finished:
    return Finished(
        "wr-0123456789-1f", api="chat", method="POST", path="/v1/chat/completions", model=model,
        slot=slot, replica=Fleet.replicas[slot].name, status=200, stream=True, started=1.7e9,
        overhead=60e-6, ttft=0.3, duration=4.2, bytes_in=4000, bytes_out=20_000,
        prompt_tokens=3000, output_tokens=200, delivered=2900, available=2950.0, chosen=2940.0,
        predicted=2928.0, policy="cache_aware", reason="least_cost", considered=CONSIDERED, key="k",
    )  # fmt: skip


def nothing(_done: Finished) -> None:
    pass


def cost(call: Callable[[Finished], object], times: int = 200) -> float:
    """Seconds for each call, over records of all replicas in turn."""
    records = [record(slot) for slot in range(REPLICAS)]
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            for one in records:
                call(one)
        best = min(best, time.perf_counter() - start)
    return best / times / REPLICAS


class OneFamily:
    """Makes as many samples as the exposition has, in the way of prometheus_client."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def collect(self) -> list[CounterMetricFamily]:
        family = CounterMetricFamily("x", "x", labels=("replica", "model", "le"))
        for number in range(self._samples):
            family.add_metric((f"10.0.0.{number % REPLICAS}:8000", "model-0", "0.25"), number)
        return [family]


async def longest_hold(shown: Exposition) -> float:
    """Seconds for which scrapes keep the event loop from its other work, at most."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - start)

    task = asyncio.create_task(watch())
    for _ in range(ROUNDS):
        await shown.render()
    task.cancel()
    return longest


def main() -> None:
    lines.MAX_CHARACTERS = sys.maxsize  # type: ignore[misc]
    base = cost(nothing)
    telemetry = Telemetry()
    explain = Explain(1000)
    with open(os.devnull, "wb") as sink:
        log = AccessLog(
            1.0, fd=sink.fileno(), most_waiting=10**9
        )  # not started: what the caller pays
        for name, call in (
            ("an empty call", nothing),
            ("making the record", lambda _: record(0)),
            ("Telemetry.observe", telemetry.observe),
            ("Explain.add", explain.add),
            ("AccessLog.add", log.add),
        ):
            spent = cost(call)
            print(f"{name:24} {spent * 1e6:6.2f} us  {spent / base:6.1f} x an empty call")
    for number in range(MODELS):
        for slot in range(REPLICAS):
            telemetry.observe(record(slot, f"model-{number}"))
    build = {"version": "0", "python": "3", "policy": "p"}
    shown = Exposition(telemetry, Fleet(), Index(), AccessLog(0.0), build)
    text = ""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        text = "".join(shown.pieces())
        best = min(best, time.perf_counter() - start)
    count = text.count("\n")
    print(
        f"a scrape, {REPLICAS} replicas x {MODELS} models: {count} lines, "
        f"{len(text) / 1e6:.2f} MB, {best * 1e3:.1f} ms, {best / count * 1e6:.2f} us a line"
    )
    start = time.perf_counter()
    generate_latest(OneFamily(count))
    theirs = time.perf_counter() - start
    print(
        f"as many by prometheus_client: {theirs * 1e3:.1f} ms, {theirs / count * 1e6:.2f} us each"
    )
    hold = asyncio.run(longest_hold(shown))
    print(f"longest hold of the event loop while scraped: {hold * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
