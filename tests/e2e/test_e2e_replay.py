"""A long replay from vLLM's own publisher, which drops what its socket has no room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import zmq

from bench.vllm import NoEngineError, find_venv
from loadgen.live.processes import free_ports
from router.kv_events.decode import Batch
from router.kv_events.sequencer import EventSequencer
from router.kv_events.socket import Subscription
from router.kv_events.sources import Source

BATCHES = 10_000
"""As many as the publisher keeps."""
TIMES = 6
WAIT_SECONDS = 120.0
_PUBLISHER = """
import sys, time
from vllm.distributed.kv_events import BlockStored, KVEventBatch, ZmqEventPublisher
batches, events, replay = int(sys.argv[1]), sys.argv[2], sys.argv[3]
publisher = ZmqEventPublisher(0, events, replay, buffer_steps=batches)
for number in range(batches):
    stored = BlockStored(
        block_hashes=[number], parent_block_hash=None, token_ids=list(range(16)), block_size=16,
        lora_id=None, medium="GPU", lora_name=None)
    publisher.publish(KVEventBatch(ts=float(number), events=[stored]))
while publisher._event_queue.qsize():
    time.sleep(0.05)
print("published", flush=True)
sys.stdin.read()
"""


class Sink:
    """Checks that batches come in order, none left out."""

    def __init__(self) -> None:
        self.next = 0
        self.changed = asyncio.Event()

    def apply(self, batch: Batch) -> None:
        assert int(batch.time) == self.next
        self.next += 1

    def empty(self, *, complete: bool) -> None:
        assert complete

    def current(self) -> None:
        self.changed.set()


@asynccontextmanager
async def publisher(events: str, replay: str) -> AsyncIterator[None]:
    """vLLM's publisher with its history, in vLLM's environment. It connects to events."""
    try:
        python = find_venv() / "bin" / "python"
    except NoEngineError as why:
        pytest.skip(str(why))
    process = await asyncio.create_subprocess_exec(
        *(python, "-c", _PUBLISHER, str(BATCHES), events, replay),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while b"published" not in (line := await process.stdout.readline()):
                assert line, "the publisher ended"
        yield
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def test_a_long_replay_is_complete() -> None:
    events, replay = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    cuts = []
    async with publisher(events, replay):
        for _ in range(TIMES):
            sink = Sink()
            sequencer = EventSequencer("engine", sink)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            subscription = Subscription(Source(0, events, True, replay, ""), context, sequencer)
            subscription.open()
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    while not sequencer.current:
                        sink.changed.clear()
                        await sink.changed.wait()
            finally:
                subscription.close()
                context.destroy(linger=0)  # returns when the address is free again
            assert sink.next == BATCHES
            assert sequencer.rebuilds == 0
            cuts.append(sequencer.cuts)
    print(f"cut short: {sum(map(bool, cuts))} of {TIMES} replays of {BATCHES} batches")
