"""Carries batches through a Redis stream. Three connections: one tells, one listens, one keeps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final

from router.state.cache_snapshots import Position
from router.state.keys import Keys, position, position_text
from router.state.link import Link
from router.state.resp import Connection, ReplyError
from router.state.snapshot_loader import load
from router.state.snapshot_writer import Keeper
from router.state.sync import Shared

log = logging.getLogger(__name__)

PAUSE: Final = 0.008
"""Seconds between two reads of the stream, so that one read brings several batches."""
AT_ONCE: Final = 64
"""Entries of the stream in one read."""
BLOCK: Final = 1.0
"""Seconds a read waits for an entry."""
MAXLEN: Final = 100_000
"""Entries of the stream that are kept if no keeper trims it."""
WITHIN: Final = 2.0
"""Seconds for an answer, after which Redis is taken to be gone."""
AGAIN: Final = (0.05, 1.0)
"""Seconds between two attempts to connect: first, and at most."""
RESENT: Final = 2.0
"""Batches this young are sent again on a new connection: a failover may have lost them."""
DEAF: Final = 3.0
"""Seconds after which own batches that do not come back mean that the stream was missed."""
SAY_AGAIN: Final = 60.0
"""Seconds between two lines in the log about one outage."""
RELOAD: Final = 2.0
"""Seconds between two loads at the least."""
SLICE: Final = 0.002
"""Seconds of work after which requests get their turn."""


class RedisCarrier:
    """The mutable state: the place in the stream, and batches not known to have arrived."""

    def __init__(self, link: Link, prefix: str) -> None:
        self.sent = 0
        self.errors = 0
        self.keys = Keys(prefix)
        self.link = link
        self.last: Position = (0, 0)
        """The last entry of the stream that was applied, or replayed."""
        self.commands = 0
        """Sent to Redis."""
        self.listening = False
        self._telling = False
        self._wake = asyncio.Event()
        self._loaded = asyncio.Event()
        self._reload = True
        """A load is due, or under way."""
        self._asked = 0
        """Times that another load was asked for."""
        self._loaded_at = -RELOAD
        self._pending: list[bytes] = []
        self._recent: deque[tuple[float, bytes]] = deque()
        self._unseen: deque[tuple[int, float]] = deque()
        """(number, when sent) of own batches that have not come back."""
        self._lag = 0.0
        self._pulse = False
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._said_at = -SAY_AGAIN
        self._bytes = [0, 0]
        """Sent and received by connections that are closed."""
        self._connections: dict[str, Connection] = {}

    @property
    def up(self) -> bool:
        """Telling and listening both work."""
        return self._telling and self.listening and self._loaded.is_set()

    @property
    def bytes_sent(self) -> int:
        """By all connections."""
        return self._bytes[0] + sum(c.sent for c in self._connections.values())

    @property
    def bytes_received(self) -> int:
        """By all connections."""
        return self._bytes[1] + sum(c.received for c in self._connections.values())

    @property
    def lag(self) -> float:
        """Seconds from a batch's sending to its coming back: of the last, or of the next if that
        is longer already."""
        if self._unseen:
            return max(self._lag, time.monotonic() - self._unseen[0][1])
        return self._lag

    def start(self, shared: Shared) -> None:
        """Begin to carry."""
        self._shared = shared
        shared.outbox.ready = self._wake.set
        keeper = Keeper(self, shared)
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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forever(
        self, what: str, work: Callable[[Connection], Coroutine[None, None, None]]
    ) -> None:
        """Connect, work until something fails, and again."""
        delay = AGAIN[0]
        while not self._stopping:
            connection: Connection | None = None
            began = time.monotonic()
            try:
                connection = self._connections[what] = await self.link.open()
                await work(connection)
            except (ReplyError, OSError) as error:
                if isinstance(error, ReplyError):
                    self.link.refused(error)
                self._failed(what, error)
            except Exception as error:
                # Nothing that goes wrong here may end the sharing for good.
                log.exception("state: %s failed", what)
                self._failed(what, error)
            finally:
                if connection is not None:
                    connection.close()
                    del self._connections[what]
                    self._bytes[0] += connection.sent
                    self._bytes[1] += connection.received
                if what == "telling":
                    self._telling = False
                elif what == "listening":
                    self.listening = False
            if self._stopping:
                return
            if time.monotonic() - began > AGAIN[1]:
                delay = AGAIN[0]
            await asyncio.sleep(delay)
            delay = min(2 * delay, AGAIN[1])

    def _failed(self, what: str, error: Exception) -> None:
        self.errors += 1
        now = time.monotonic()
        if not self._stopping and now - self._said_at > SAY_AGAIN:
            self._said_at = now
            log.warning("state: local only, %s: %s", what, error)

    # Telling

    async def _tell(self, connection: Connection) -> None:
        outbox = self._shared.outbox
        before = time.monotonic() - RESENT
        resent = [data for when, data in self._recent if when > before]
        self._pending = resent + [data for data in self._pending if data not in resent]
        outbox.call_roll()
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
                await self._deliver(connection)
            if outbox.lost_since:
                for data in self._shared.retold():
                    self._pending.append(data)
                    await self._deliver(connection)
                log.info("state: told again what could not be told")
            if self._stopping and not outbox.waiting:
                me = f"{self._shared.router:016x}"
                keys = self.keys
                await connection.call("HDEL", keys.routers, me, within=WITHIN)
                if await connection.call("GET", keys.keeper, within=WITHIN) == me.encode():
                    await connection.call("DEL", keys.keeper, within=WITHIN)
                return

    async def _deliver(self, connection: Connection) -> None:
        """Send what is pending. Raises ReplyError when Redis does not take it, LostError."""
        name = self.keys.facts
        commands = [("XADD", name, "MAXLEN", "~", MAXLEN, "*", "f", d) for d in self._pending]
        number = self._shared.outbox.number
        now = time.monotonic()
        for reply in await connection.calls(commands, WITHIN):
            if isinstance(reply, ReplyError):
                raise reply
        self.commands += len(commands)
        self.sent += len(commands)
        recent = self._recent
        recent.extend((now, data) for data in self._pending)
        while recent and recent[0][0] < now - RESENT:
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
                log.info("state: shared again")
            self._said_at = -SAY_AGAIN

    # Listening

    async def _listen(self, connection: Connection) -> None:
        read = ("XREAD", "BLOCK", int(BLOCK * 1000), "COUNT", AT_ONCE, "STREAMS", self.keys.facts)
        self._unseen.clear()
        while True:
            if self._reload and time.monotonic() - self._loaded_at >= RELOAD:
                await self._load(connection)
            reply = await connection.call(*read, position_text(self.last), within=BLOCK + WITHIN)
            self.commands += 1
            if not self.listening:
                self.listening = True
                self._recovered()
            count = await self._apply(reply)
            self._watch()
            if 0 < count < AT_ONCE:
                await asyncio.sleep(PAUSE)

    async def _apply(self, reply: object) -> int:
        """Apply what a read brought. Returns the number of entries."""
        if not isinstance(reply, list):
            return 0
        peers = self._shared.peers
        now = time.monotonic()
        entries = reply[0][1]
        until = now + SLICE
        for entry_id, fields in entries:
            self.last = position(entry_id)
            if not peers.apply(bytes(fields[1]) if fields else b"", now):
                log.info("state: batches were missed, loading again")
                self.load_again()
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE
        return len(entries)

    def _watch(self) -> None:
        """See how long own batches take to come back."""
        unseen = self._unseen
        seen = self._shared.peers.own_seen
        now = time.monotonic()
        while unseen and unseen[0][0] <= seen:
            self._lag = now - unseen.popleft()[1]
        if unseen and now - unseen[0][1] > DEAF:
            # The stream's ids began anew below ours: Redis lost it, and its clock went back.
            log.warning("state: own batches do not come back, loading again")
            unseen.clear()
            self.load_again()

    async def _load(self, connection: Connection) -> None:
        asked = self._asked
        self.last, whole = await load(connection, self.keys, self._shared)
        self._loaded_at = time.monotonic()
        self._reload = self._asked != asked or not whole
        self._loaded.set()
        self._shared.outbox.hello()
