"""Three ways to receive KV events: CPU time of the process for each batch of one block.

    python -m bench.exact_sockets

A process publishes batches at a steady pace; they are decoded and applied to an index.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from typing import Any

import msgspec
import uvloop
import zmq
import zmq.asyncio

from router.kv_events.decode import decode
from router.kv_events.sequencer import EventSequencer
from router.kv_events.socket import Subscription
from router.kv_events.sources import Source
from router.kv_events.token_index import TokenIndex

BATCHES = 6000
PACE = 2000
"""Batches a second, sent one by one as engines do."""


def publish(port: int) -> None:
    """The publishing side, which runs in a process of its own."""
    rng = random.Random(1)
    socket = zmq.Context().socket(zmq.PUB)
    socket.bind(f"tcp://127.0.0.1:{port}")
    time.sleep(1.0)
    started = time.monotonic()
    for number in range(BATCHES):
        event = {
            "type": "BlockStored", "block_hashes": [rng.getrandbits(64)],
            "parent_block_hash": None, "token_ids": list(range(16)), "block_size": 16,
            "lora_id": None, "medium": "GPU", "lora_name": None,
        }  # fmt: skip
        payload = msgspec.msgpack.encode([0.0, [event], 0])
        socket.send_multipart((b"", number.to_bytes(8, "big"), payload))
        time.sleep(max(0.0, started + number / PACE - time.monotonic()))
    time.sleep(0.5)


class Sink:
    """Applies batches and reports when all have arrived."""

    def __init__(self) -> None:
        self.index = TokenIndex()
        self.index.add_replica(0)
        self.count = 0
        self.done = asyncio.Event()

    def apply(self, batch: Any) -> None:
        self.index.apply(0, batch)
        self.count += 1
        if self.count >= BATCHES * 0.95:
            self.done.set()

    def empty(self, *, complete: bool) -> None:
        pass

    def current(self) -> None:
        pass


async def by_reader(port: int, sink: Sink) -> None:
    """Receive with the loop's reader on the socket's descriptor, as the router does."""
    feed = EventSequencer("bench", sink)
    source = Source(0, f"tcp://127.0.0.1:{port}", False, "", "")
    subscription = Subscription(source, zmq.Context(), feed)
    subscription.open()
    await sink.done.wait()
    subscription.close()


async def by_futures(port: int, sink: Sink) -> None:
    """Receive with zmq.asyncio."""
    socket = zmq.asyncio.Context().socket(zmq.SUB)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.subscribe("")
    while not sink.done.is_set():
        sink.apply(decode((await socket.recv_multipart())[-1]))


async def by_thread(port: int, sink: Sink) -> None:
    """Receive and decode in a thread, which hands batches over to the loop."""
    loop = asyncio.get_running_loop()

    def receive() -> None:
        socket = zmq.Context().socket(zmq.SUB)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.subscribe("")
        while not sink.done.is_set():
            if socket.poll(200):
                loop.call_soon_threadsafe(sink.apply, decode(socket.recv_multipart()[-1]))

    thread = threading.Thread(target=receive)
    thread.start()
    await sink.done.wait()
    await asyncio.to_thread(thread.join)


async def measure(way: Any, port: int) -> float:
    """CPU microseconds for each batch."""
    sink = Sink()
    process = multiprocessing.get_context("spawn").Process(target=publish, args=(port,))
    process.start()
    await asyncio.sleep(0.5)
    started = time.process_time()
    await asyncio.wait_for(way(port, sink), 60)
    used = time.process_time() - started
    process.join()
    return 1e6 * used / sink.count


def main() -> None:
    """The command `python -m bench.exact_sockets`."""
    for number, way in enumerate((by_reader, by_futures, by_thread)):
        each = uvloop.run(measure(way, 29_400 + number))
        print(f"{way.__name__:12s} {each:7.1f} us a batch")


if __name__ == "__main__":
    main()
