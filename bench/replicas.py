"""How fast the simulated replicas are: the engine in virtual time, and the fleet over loopback.

    python -m bench.replicas engine [--trace FILE]   simulated requests a second, one core
    python -m bench.replicas streams [--step-ms 2]   streamed chunks a second, the fleet on one core
    python -m bench.replicas bare                    the same number of connections, no fleet

The trace is in Mooncake's form, a JSON object a line with timestamp (ms), input_length,
output_length, hash_ids (one for each 512 tokens). Without one, a synthetic trace of the same
proportions is made. The fleet runs in a process of its own; its CPU time is read from the system,
so that a busy machine changes what was reached but not what a chunk costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import select
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import uvloop

from loadgen.engine import Engine, Request, preset
from loadgen.replicas import QUICK, SimulatedFleet

BLOCK = 512
CHUNK = 222
"""Bytes of the chunk that carries one token of a chat completion."""
LONGEST_START = 20.0
"""Seconds for opening the streams; answers are long enough to last as long."""


def synthetic(count: int = 6000) -> list[dict[str, Any]]:
    """Conversations, about 13,000 tokens in and 350 out on average, 3 requests a second."""
    rng = Random(1)
    rows: list[dict[str, Any]] = []
    talks: list[list[int]] = []
    fresh = 0
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


class Reading(msgspec.Struct, frozen=True):
    """Totals of the process that runs the fleet."""

    cpu: float
    """CPU seconds, user and system."""
    system: float
    """CPU seconds in the kernel, a part of `cpu`."""
    writes: int
    """System calls that wrote, as Linux counts them."""
    chunks: int
    """Tokens that the engines generated."""
    running: int
    """Requests that the engines run now."""

    @classmethod
    def take(cls, fleet: SimulatedFleet) -> Reading:
        """Read the totals of this moment."""
        counts = Path("/proc/self/io").read_text().splitlines()
        return cls(
            time.process_time(),
            os.times().system,
            next(int(line.split()[1]) for line in counts if line.startswith("syscw:")),
            sum(one.engine.counters.generation_tokens for one in fleet.replicas),
            sum(len(one.engine.running) for one in fleet.replicas),
        )


def fleet_process(pipe: Connection, replicas: int, each: int, tokens: int, step: float) -> None:
    """Serve; answer each message with a Reading, until the message is None."""
    params = msgspec.structs.replace(
        QUICK,
        num_blocks=each * (tokens // QUICK.block_size + 4),
        max_num_seqs=max(each, QUICK.max_num_seqs),
        max_model_len=tokens + QUICK.max_model_len,
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
                pipe.send(Reading.take(fleet))

    uvloop.run(main())


class Reader:
    """Reads many sockets with as little work as Python allows, so that the fleet's rate is the
    fleet's."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.buffer = bytearray(1 << 18)
        self.bytes = 0
        self.reads = 0

    def open(self, port: int, request: bytes) -> None:
        """One more connection, with its request."""
        made = socket.create_connection(("127.0.0.1", port))
        made.sendall(request)
        made.setblocking(False)
        self.sockets[made.fileno()] = made
        self.poll.register(made, select.EPOLLIN)

    def read(self, seconds: float) -> None:
        """Read what comes for so long."""
        sockets, buffer = self.sockets, self.buffer
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            for number, _ in self.poll.poll(left, 512):
                self.bytes += sockets[number].recv_into(buffer)
                self.reads += 1


def streams(replicas: int, each: int, step: float, seconds: float) -> None:
    """Open ``each`` streams to every replica, wait until all run, and watch them for some
    seconds."""
    tokens = int((seconds + LONGEST_START + 10) / step)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(
        target=fleet_process, args=(theirs, replicas, each, tokens, step), daemon=True
    )
    process.start()
    ports = ours.recv()
    message = {"role": "user", "content": "hello"}
    body = json.dumps(
        {"model": "sim", "messages": [message], "max_tokens": tokens, "stream": True}
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    reader = Reader()
    for port in ports:
        for _ in range(each):
            reader.open(port, head % len(body) + body)
        reader.read(0.01)

    def sample() -> Reading:
        ours.send("sample")
        found = ours.recv()
        assert isinstance(found, Reading)
        return found

    opened = time.perf_counter()
    while sample().running < replicas * each:
        if time.perf_counter() - opened > LONGEST_START:
            sys.exit(f"not all streams run after {LONGEST_START} s: try fewer, or longer steps")
        reader.read(0.2)
    # What piled up meanwhile must not be counted.
    reader.read(1.0)
    before, started = sample(), time.perf_counter()
    own, received, reads = time.process_time(), reader.bytes, reader.reads
    reader.read(seconds)
    after, wall = sample(), time.perf_counter() - started
    own = time.process_time() - own
    ours.send(None)
    if after.running < replicas * each:
        sys.exit("answers ended while they were watched: try fewer --seconds")
    cpu, system = after.cpu - before.cpu, after.system - before.system
    chunks, writes = after.chunks - before.chunks, after.writes - before.writes
    print(
        f"{replicas * each} streams, steps of {step * 1000:g} ms, {replicas * each / step:,.0f} "
        f"chunks/s asked for: {chunks / wall:,.0f} chunks/s on {cpu / wall:.0%} of a core, "
        f"{system / cpu:.0%} of it the kernel's\n"
        f"  {chunks / cpu:,.0f} chunks per CPU second, {chunks / writes:.2f} chunks a write, "
        f"{cpu / writes * 1e6:.1f} us a write\n"
        f"  reader: {(reader.bytes - received) / 1e6 / wall:,.0f} MB/s, "
        f"{chunks / max(reader.reads - reads, 1):.2f} chunks a read, {own / wall:.0%} of a core"
    )
    process.join(5)


def bare_process(pipe: Connection, count: int, seconds: float) -> None:
    """Write a chunk to each of so many connections in turn; answer (writes, CPU seconds)."""
    with socket.create_server(("127.0.0.1", 0), backlog=count) as server:
        pipe.send(server.getsockname()[1])
        made = [server.accept()[0] for _ in range(count)]
    for one in made:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setblocking(False)
    chunk, writes = bytes(CHUNK), 0
    end, cpu = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        for one in made:
            # One that is full is for the reader to catch up with.
            with contextlib.suppress(BlockingIOError):
                one.send(chunk)
                writes += 1
    pipe.send((writes, time.process_time() - cpu))


def bare(count: int, seconds: float) -> None:
    """What the system takes for a write, whoever writes: no fleet can be faster with one chunk to
    a write."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=bare_process, args=(theirs, count, seconds), daemon=True)
    process.start()
    reader, port = Reader(), ours.recv()
    for _ in range(count):
        reader.open(port, b"")
    while not ours.poll():
        reader.read(0.1)
    writes, cpu = ours.recv()
    print(
        f"{count} connections, bare writes of {CHUNK} bytes: {writes / cpu:,.0f} per CPU second, "
        f"{cpu / writes * 1e6:.1f} us each, {writes / reader.reads:.2f} a read"
    )
    process.join(5)


def main() -> None:
    """The command `python -m bench.replicas`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["engine", "streams", "bare"])
    parser.add_argument("--trace")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--streams", type=int, default=64, help="to each replica")
    parser.add_argument("--step-ms", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    args = parser.parse_args()
    if args.what == "engine":
        engine(args.trace, args.replicas)
    elif args.what == "bare":
        bare(args.replicas * args.streams, args.seconds)
    else:
        streams(args.replicas, args.streams, args.step_ms / 1000, args.seconds)


if __name__ == "__main__":
    main()
