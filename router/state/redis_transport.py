"""Carries batches through a Redis stream. Three connections: one tells, one listens, one keeps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from router.state.allowance import Allowance
from router.state.cache_snapshots import Position
from router.state.keys import Keys, position, position_text
from router.state.redis_client import Client, errors
from router.state.snapshot_loader import load
from router.state.snapshot_writer import SnapshotWriter
from router.state.sync import StateSync

if TYPE_CHECKING:
    from router.state.redis_connector import RedisConnector

log = logging.getLogger(__name__)

READ_INTERVAL_S: Final = 0.001
"""Seconds between two reads of the stream."""
BUSY_READ_INTERVAL_S: Final = 0.008
"""The same where much is told, so that one read brings several batches."""
BUSY_READS: Final = (0.01, 16)
"""Much is told when there were more than so many reads, and one more every so many seconds."""
MAX_READ_ENTRIES: Final = 64
"""Entries of the stream in one read."""
READ_BLOCK_S: Final = 1.0
"""Seconds a read waits for an entry."""
MAX_STREAM_ENTRIES: Final = 100_000
"""Entries of the stream that are kept if no keeper trims it."""
REPLY_TIMEOUT_S: Final = 2.0
"""Seconds for an answer, after which Redis is taken to be gone."""
RECONNECT_BACKOFF_S: Final = (0.05, 1.0)
"""Seconds between two attempts to connect: first, and at most."""
RESEND_YOUNGER_THAN_S: Final = 2.0
"""Batches this young are sent again on a new connection: a failover may have lost them."""
ECHO_TIMEOUT_S: Final = 3.0
"""Seconds after which own batches that do not come back mean that the stream was missed."""
OUTAGE_LOG_INTERVAL_S: Final = 60.0
"""Seconds between two lines in the log about one outage."""
RELOAD_INTERVAL_S: Final = 2.0
"""Seconds between two loads at the least."""
MAX_CANCELS: Final = 20
CANCEL_RETRY_S: Final = 0.1
"""redis-py on uvloop now and then loses the cancellation of a read: it is cancelled again."""
WORK_SLICE_S: Final = 0.002
"""Seconds of work after which requests get their turn."""


class RedisTransport:
    """The mutable state: the place in the stream, and batches not known to have arrived."""

    def __init__(self, connector: RedisConnector, prefix: str) -> None:
        self.sent = 0
        self.errors = 0
        self.keys = Keys(prefix)
        self.connector = connector
        self.last: Position = (0, 0)
        """The last entry of the stream that was applied, or replayed."""
        self.commands = 0
        """Commands sent to Redis."""
        self.listening = False
        self._telling = False
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()
        self._reload = True
        """A load is due, or under way."""
        self._asked = 0
        """Times that another load was asked for."""
        self._loaded_at = -RELOAD_INTERVAL_S
        self._pending: list[bytes] = []
        self._recent: deque[tuple[float, bytes]] = deque()
        self._unseen: deque[tuple[int, float]] = deque()
        """(number, when sent) of own batches that have not come back."""
        self._lag = 0.0
        self._pulse = False
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._said_at = -OUTAGE_LOG_INTERVAL_S
        self.bytes_sent = 0
        """Bytes of the batches sent."""
        self.bytes_received = 0

    @property
    def up(self) -> bool:
        """Telling and listening both work."""
        return self._telling and self.listening and self._loaded.is_set()

    @property
    def lag(self) -> float:
        """Seconds from a batch's sending to its coming back: of the last, or of the next if that
        is longer already."""
        if self._unseen:
            return max(self._lag, time.monotonic() - self._unseen[0][1])
        return self._lag

    def start(self, shared: StateSync) -> None:
        """Start the tasks that send, read and write snapshots. Returns at once."""
        self._sync = shared
        shared.outbox.ready = self._wake.set
        keeper = SnapshotWriter(self, shared)
        self._tasks = [
            asyncio.create_task(self._forever("telling", self._tell), name="state telling"),
            asyncio.create_task(self._forever("listening", self._listen), name="state listening"),
            asyncio.create_task(self._forever("keeping", keeper.run), name="state keeping"),
        ]

    async def loaded(self) -> None:
        """Wait for the first load."""
        await self._loaded.wait()

    def load_again(self) -> None:
        """At the next read."""
        self._asked += 1
        self._reload = True

    def tick(self) -> None:
        """Say something, if only that this router lives."""
        self._pulse = True
        self._wake.set()

    async def stop(self) -> None:
        """Send what waits within half a second, then end."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=0.5 if self._telling else 0.0)
        running = set(self._tasks)
        for _ in range(MAX_CANCELS):
            if not running:
                return
            for task in running:
                task.cancel()
            _, running = await asyncio.wait(running, timeout=CANCEL_RETRY_S)
        log.error("state: %d tasks did not end in time", len(running))

    async def _forever(
        self, what: str, work: Callable[[Client], Coroutine[None, None, None]]
    ) -> None:
        """Connect, work until something fails, and again."""
        delay = RECONNECT_BACKOFF_S[0]
        timeout_s = REPLY_TIMEOUT_S + READ_BLOCK_S if what == "listening" else REPLY_TIMEOUT_S
        while not self._stopping:
            client: Client | None = None
            began = time.monotonic()
            try:
                client = await self.connector.open(self.keys.facts, timeout_s)
                await work(client)
            except errors() as error:
                self._failed(what, error)
            except Exception as error:
                # Nothing that goes wrong here may end the sharing for good.
                log.exception("state: %s failed", what)
                self._failed(what, error)
            finally:
                if client is not None:
                    await client.aclose()
                if what == "telling":
                    self._telling = False
                elif what == "listening":
                    self.listening = False
            if self._stopping:
                return
            if time.monotonic() - began > RECONNECT_BACKOFF_S[1]:
                delay = RECONNECT_BACKOFF_S[0]
            await asyncio.sleep(delay)
            delay = min(2 * delay, RECONNECT_BACKOFF_S[1])

    def _failed(self, what: str, error: Exception) -> None:
        self.errors += 1
        now = time.monotonic()
        if not self._stopping and now - self._said_at > OUTAGE_LOG_INTERVAL_S:
            self._said_at = now
            log.warning(
                "state: local only, because %s failed: %s", what, str(error) or type(error).__name__
            )

    # Telling

    async def _tell(self, client: Client) -> None:
        outbox = self._sync.outbox
        before = time.monotonic() - RESEND_YOUNGER_THAN_S
        resent = [data for when, data in self._recent if when > before]
        self._pending = resent + [data for data in self._pending if data not in resent]
        outbox.send_in_flight()
        while True:
            if not self._pending:
                await self._wake.wait()
                self._wake.clear()
                for _ in range(4):
                    data = outbox.take()
                    if data is None:
                        break
                    self._pending.append(data)
                else:
                    self._wake.set()
                if not self._pending and self._pulse:
                    self._pending.append(outbox.pulse())
                self._pulse = False
            if self._pending:
                await self._deliver(client)
            if outbox.lost_since:
                for data in self._sync.resend_from_index():
                    self._pending.append(data)
                    await self._deliver(client)
                log.info("state: sent the cache contents again, because updates were dropped")
            if self._stopping and not outbox.waiting:
                me = f"{self._sync.router:016x}"
                keys = self.keys
                await client.hdel(keys.routers, me)
                if await client.get(keys.keeper) == me.encode():
                    await client.delete(keys.keeper)
                return

    async def _deliver(self, client: Client) -> None:
        """Send what is pending. Raises one of `errors` when Redis does not take it."""
        name, pending = self.keys.facts, self._pending
        number = self._sync.outbox.number
        now = time.monotonic()
        if len(pending) == 1:
            await client.xadd(name, {b"f": pending[0]}, maxlen=MAX_STREAM_ENTRIES)
        else:
            pipeline = client.pipeline(transaction=False)
            for data in pending:
                pipeline.xadd(name, {b"f": data}, maxlen=MAX_STREAM_ENTRIES)
            await pipeline.execute()
        self.commands += len(pending)
        self.sent += len(pending)
        self.bytes_sent += sum(map(len, pending))
        recent = self._recent
        recent.extend((now, data) for data in pending)
        while recent and recent[0][0] < now - RESEND_YOUNGER_THAN_S:
            recent.popleft()
        self._pending = []
        if not self._unseen or self._unseen[-1][0] != number:
            self._unseen.append((number, now))
        if not self._telling:
            self._telling = True
            self._recovered()

    def _recovered(self) -> None:
        if self.up:
            if self._said_at > 0:
                log.info("state: shared again with the other routers")
            self._said_at = -OUTAGE_LOG_INTERVAL_S

    # Listening

    async def _listen(self, client: Client) -> None:
        reads = Allowance(*BUSY_READS)
        name, block = self.keys.facts, int(READ_BLOCK_S * 1000)
        self._unseen.clear()
        while not self._stopping:
            if self._reload and time.monotonic() - self._loaded_at >= RELOAD_INTERVAL_S:
                await self._load(client)
            reply = await client.xread({name: position_text(self.last)}, MAX_READ_ENTRIES, block)
            self.commands += 1
            if not self.listening:
                self.listening = True
                self._recovered()
            count = await self._apply(reply)
            self._watch()
            if 0 < count < MAX_READ_ENTRIES:
                await asyncio.sleep(
                    READ_INTERVAL_S if reads.spend(time.monotonic()) else BUSY_READ_INTERVAL_S
                )

    async def _apply(self, reply: list[Any]) -> int:
        """Apply what a read brought. Returns the number of entries."""
        if not reply:
            return 0
        peers = self._sync.peers
        now = time.monotonic()
        entries = reply[0][1]
        until = now + WORK_SLICE_S
        for entry_id, fields in entries:
            self.last = position(entry_id)
            data = fields.get(b"f", b"")
            self.bytes_received += len(data)
            if not peers.apply(data, now):
                log.info("state: missed batches of other routers; loading all snapshots again")
                self.load_again()
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + WORK_SLICE_S
        return len(entries)

    def _watch(self) -> None:
        """See how long own batches take to come back."""
        unseen = self._unseen
        seen = self._sync.peers.own_seen
        now = time.monotonic()
        while unseen and unseen[0][0] <= seen:
            self._lag = now - unseen.popleft()[1]
        if unseen and now - unseen[0][1] > ECHO_TIMEOUT_S:
            # The stream's ids began anew below ours: Redis lost it, and its clock went back.
            log.warning("state: own batches do not come back; loading all snapshots again")
            unseen.clear()
            self.load_again()

    async def _load(self, client: Client) -> None:
        asked = self._asked
        self.last, whole = await load(client, self.keys, self._sync)
        self._loaded_at = time.monotonic()
        self._reload = self._asked != asked or not whole
        self._loaded.set()
        self._sync.outbox.hello()
