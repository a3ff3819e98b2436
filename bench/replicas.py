"""How fast the simulated replicas are: the engine in virtual time, and the fleet over loopback.

    python -m bench.replicas engine [--trace FILE]   simulated requests a second, one core
    python -m bench.replicas streams [--step-ms 2]   streamed chunks a second, the fleet on one core
 The trace is in Mooncake's form, a JSON object a line with timestamp (ms), input_length,
output_length, hash_ids (one for each 512 tokens). Without one, a synthetic trace of the same
proportions is made. The fleet runs in a process of its own; its CPU time is read from the system,
so that a busy machine changes what was reached but not what a chunk costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import uvloop

from loadgen.engine import Engine, Request, preset
from loadgen.replicas import QUICK, SimulatedFleet

BLOCK = 512


def synthetic(count: int = 6000) -> list[dict]:
    """Conversations, about 13,000 tokens in and 350 out on average, 3 requests a second."""
    rng = Random(1)
    rows, fresh, talks = [], 0, []
    for number in range(count):
        grows = bool(talks) and rng.random() < 0.4
        ids = list(rng.choice(talks[-200:])) if grows else [0]
        for _ in range(int(rng.expovariate(1 / 20)) + 1):
            fresh += 1
            ids.append(fresh)
        talks.append(ids)
        rows.append(
            {
                "timestamp": number * 333,
                "input_length": len(ids) * BLOCK - rng.randrange(BLOCK),
                "output_length": int(rng.expovariate(1 / 350)) + 1,
                "hash_ids": ids,
            }
        )
    return rows


def engine(trace: str | None, replicas: int = 8) -> None:
    """Run the trace at its own speed and at four times it, replicas chosen by the prompt's
    start."""
    if trace:
        rows = [json.loads(line) for line in Path(trace).read_text().splitlines()]
    else:
        rows = synthetic()
    source = preset("32b-2xh100")
    params = msgspec.structs.replace(
        source,
        block_size=BLOCK,
        num_blocks=source.cache_tokens // BLOCK,
        max_model_len=source.cache_tokens,
    )
    for speed in (1, 4):
        engines = [Engine(params) for _ in range(replicas)]
        start = time.process_time()
        for row in rows:
            now = row["timestamp"] / 1000 / speed
            for each in engines:
                while each.due <= now:
                    each.step()
            chosen = engines[hash(tuple(row["hash_ids"][:2])) % replicas]
            chosen.add(Request(row["input_length"], row["output_length"], row["hash_ids"]), now)
        for each in engines:
            while not each.idle:
                each.step()
        seconds = time.process_time() - start
        steps = sum(each.counters.steps for each in engines)
        hits = sum(each.counters.prefix_hits for each in engines)
        queries = sum(each.counters.prefix_queries for each in engines)
        print(
            f"engine, trace at {speed}x: {len(rows) / seconds:,.0f} requests per CPU second, "
            f"{steps / seconds:,.0f} engine steps/s, hit rate {hits / queries:.2f}"
        )


def fleet_process(pipe: Connection, replicas: int, step: float) -> None:
    """Serve; answer each message with (CPU seconds used, tokens generated)."""
    params = msgspec.structs.replace(
        QUICK,
        num_blocks=60_000,
        max_model_len=900_000,
        step_base_seconds=step,
        step_request_seconds=0.0,
        step_token_seconds=0.0,
    )

    async def main() -> None:
        async with SimulatedFleet(replicas, params=params, keep_requests=0) as fleet:
            pipe.send([replica.port for replica in fleet.replicas])
            asked = asyncio.Event()
            asyncio.get_running_loop().add_reader(pipe.fileno(), asked.set)
            while True:
                await asked.wait()
                asked.clear()
                if pipe.recv() is None:
                    return
                tokens = sum(one.engine.counters.generation_tokens for one in fleet.replicas)
                pipe.send((time.process_time(), tokens))

    uvloop.run(main())


class Sink(asyncio.Protocol):
    """Sends one request and counts what comes."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.bytes = 0
        self.reads = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        cast(asyncio.Transport, transport).write(head % len(self.body) + self.body)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        self.reads += 1


async def streams(replicas: int, each: int, step: float, seconds: float) -> None:
    """Open ``each`` streams to every replica and watch them for some seconds."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=fleet_process, args=(theirs, replicas, step), daemon=True
    )
    process.start()
    ports = ours.recv()
    message = {"role": "user", "content": "hello"}
    body = json.dumps(
        {"model": "sim", "messages": [message], "max_tokens": 800_000 // each, "stream": True}
    ).encode()
    loop = asyncio.get_running_loop()
    sinks: list[Sink] = []
    for port in ports:
        for _ in range(each):
            _, sink = await loop.create_connection(lambda: Sink(body), "127.0.0.1", port)
            sinks.append(sink)
    await asyncio.sleep(0.5)

    def sample() -> tuple[float, float, int, int]:
        ours.send("sample")
        cpu, tokens = ours.recv()
        return time.perf_counter(), cpu, tokens, sum(sink.reads for sink in sinks)

    before = sample()
    await asyncio.sleep(seconds)
    after = sample()
    ours.send(None)
    wall, cpu, tokens, reads = (end - start for start, end in zip(before, after, strict=True))
    print(
        f"{len(sinks)} streams, step {step * 1000:g} ms: {tokens / wall:,.0f} chunks/s on "
        f"{cpu / wall:.0%} of a core = {tokens / cpu:,.0f} chunks per CPU second, "
        f"{tokens / max(reads, 1):.1f} chunks a read"
    )
    process.join(5)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["engine", "streams"])
    parser.add_argument("--trace")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--streams", type=int, default=64, help="to each replica")
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    if args.what == "engine":
        engine(args.trace, args.replicas)
    else:
        uvloop.run(streams(args.replicas, args.streams, args.step_ms / 1000, args.seconds))


if __name__ == "__main__":
    main()
