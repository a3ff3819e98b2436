"""Carries facts between the workers of one host, through their supervisor."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from router.state.cache_snapshots import decode, encode
from router.state.codec import BadBatchError
from router.state.sync import StateSync
from router.workers.frames import BATCH, LOAD, LOADED, MAP, Frames

log = logging.getLogger(__name__)

RELOAD_INTERVAL_S: Final = 2.0
"""Seconds between two loads at the least."""
WORK_SLICE_S: Final = 0.002


class WorkerTransport:
    """The supervisor passes batches on in the order they come, the same to all."""

    def __init__(self) -> None:
        self.sent = 0
        self.errors = 0
        self.lag = 0.0
        """Not measured: a batch is with the others within a millisecond or so."""
        self._sync: StateSync | None = None
        """None until it starts: what comes before is in the maps it will ask for."""
        self._frames: Frames | None = None
        self._loaded = asyncio.Event()
        self._asked_at = -RELOAD_INTERVAL_S
        self._again = False
        self._helping: set[asyncio.Task[None]] = set()

    @property
    def up(self) -> bool:
        """Whether the supervisor is there."""
        return self._frames is not None and self._loaded.is_set()

    @property
    def bytes_sent(self) -> int:
        """Bytes, the headers of frames included."""
        return self._frames.bytes_sent if self._frames is not None else 0

    @property
    def bytes_received(self) -> int:
        """Bytes, the headers of frames included."""
        return self._frames.bytes_received if self._frames is not None else 0

    def attach(self, frames: Frames) -> None:
        """The way to the supervisor. Before start."""
        self._frames = frames

    def start(self, shared: StateSync) -> None:
        """Begin to carry, and ask what the others know."""
        self._sync = shared
        shared.outbox.ready = self._send
        self._ask()

    async def loaded(self) -> None:
        """Wait for the first load."""
        await self._loaded.wait()

    def load_again(self) -> None:
        """At the next tick."""
        self._again = True

    def tick(self) -> None:
        """Say something; ask again what was missed."""
        assert self._sync is not None
        outbox = self._sync.outbox
        if not outbox.waiting:
            self._tell(outbox.pulse())
        self._send()
        if self._again and time.monotonic() - self._asked_at >= RELOAD_INTERVAL_S:
            self._ask()

    async def stop(self) -> None:
        """Send what waits, and end."""
        self._send()
        for task in self._helping:
            task.cancel()

    def _send(self) -> None:
        if self._sync is None:
            return
        outbox = self._sync.outbox
        while (data := outbox.take()) is not None:
            self._tell(data)
        if outbox.lost_since:
            for data in self._sync.resend_from_index():
                self._tell(data)

    def _tell(self, data: bytes) -> None:
        if self._frames is not None and self._frames.tell(BATCH, data):
            self.sent += 1
        else:
            self.errors += 1

    def _ask(self) -> None:
        self._again = False
        self._asked_at = time.monotonic()
        if self._frames is not None:
            self._frames.tell(LOAD)

    def heard(self, kind: int, worker: int, data: bytes) -> None:
        """Handle a frame from the supervisor."""
        shared = self._sync
        if shared is None:
            return
        if kind == BATCH:
            if not shared.peers.apply(data, time.monotonic()):
                self._again = True
        elif kind == LOAD:
            task = asyncio.get_running_loop().create_task(self._help(shared, worker))
            self._helping.add(task)
            task.add_done_callback(self._helping.discard)
        elif kind == MAP:
            _adopt(shared, data)
        elif kind == LOADED:
            self._loaded.set()
            shared.outbox.hello()

    async def _help(self, shared: StateSync, worker: int) -> None:
        """Give another worker all this one knows."""
        frames = self._frames
        if frames is None:
            return
        until = time.monotonic() + WORK_SLICE_S
        for slot, name in list(shared.names.items()):
            if shared.names.get(slot) != name:
                continue
            touches = shared.touches(slot)
            key = shared.key(slot)
            for data in encode(key, touches, (0, 0), time.monotonic(), time.time()):
                if data is not None:
                    label = name.encode()
                    frames.tell(MAP, len(label).to_bytes(2, "little") + label + data, worker)
                if time.monotonic() > until:
                    await asyncio.sleep(0)
                    until = time.monotonic() + WORK_SLICE_S
        frames.tell(LOADED, b"", worker)


def _adopt(shared: StateSync, data: bytes) -> None:
    length = int.from_bytes(data[:2], "little")
    name = data[2 : 2 + length].decode()
    for slot, its_name in shared.names.items():
        if its_name == name:
            try:
                shared.adopt(slot, decode(data[2 + length :], time.time()))
            except BadBatchError as error:
                log.warning(
                    "workers: skipped an unreadable snapshot of replica %s: %s", name, error
                )
            return
