"""The room of what routers share: ties outbox, peers and a transport to the rest of the router."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.index import ByteIndex
from router.queue.peers import PeerQueues
from router.queue.queue import Queue
from router.scheduling.placer import Placer
from router.state.cache_snapshots import CacheSnapshot, adopt
from router.state.chain_dictionary import ChainDictionary
from router.state.codec import name_key
from router.state.outbox import Outbox
from router.state.peers import Peers
from router.state.queue_facts import QueueTeller
from router.types import Chain

log = logging.getLogger(__name__)

TICK_INTERVAL_S: Final = 1.0
"""Seconds between two signs of life, and between two looks for routers that died."""
IN_FLIGHT_INTERVAL_S: Final = 10.0
"""Seconds between two rolls nobody asked for: what went wrong unseen is right again by then."""
SAME_RESTART_S: Final = 10.0
"""Seconds in which two routers that see a replica restart see the same restart."""
IN_FLIGHT_WAIT_S: Final = 0.5
"""Seconds a starting router waits for the others' rolls."""


class Transport(Protocol):
    """Brings batches to the other routers and theirs here."""

    sent: int
    """Batches sent."""
    errors: int

    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def lag(self) -> float:
        """Seconds from a batch sent to its coming back."""
        ...

    @property
    def up(self) -> bool:
        """Whether the other routers hear this one, and it hears them."""
        ...

    def start(self, shared: StateSync) -> None:
        """Start the transport. Returns at once."""
        ...

    async def loaded(self) -> None:
        """Returns when what the others know has been loaded."""
        ...

    def load_again(self) -> None:
        """A replica is new here, or something was missed."""
        ...

    def tick(self) -> None:
        """Called every TICK_INTERVAL_S."""
        ...

    async def stop(self) -> None:
        """Send what waits, if that goes quickly, and end."""
        ...


class StateSync(FleetListener):
    """Made before the app starts; `start` when its fleet and its loop are there."""

    def __init__(
        self,
        fleet: Fleet,
        index: ByteIndex,
        placers: Sequence[Placer],
        transport: Transport,
        resize: Callable[[int, int], None],
        holders: Holders | None = None,
    ) -> None:
        """placers: the first is the one that routes by prefix. resize(slot, tokens) changes the
        index's room for a replica. holders: which replica keeps which response, shared too."""
        self.transport = transport
        self.index = index
        self.router = secrets.randbits(63) | 1
        """Names this run of this process; never 0."""
        self.dictionary = ChainDictionary()
        self.names: dict[int, str] = {}
        """Slot -> name of the replica."""
        self._fleet = fleet
        self._resize = resize
        self._holders = holders
        if holders is not None:
            holders.tell = self._kept
        self._keys: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._forgot_at: dict[int, float] = {}
        self._running = False
        self._ticking: asyncio.TimerHandle | None = None
        self._sent_in_flight_at = 0.0
        self.outbox = Outbox(self.router, self.dictionary, self._keys, self._later)
        self.peers = Peers(placers[0], self.outbox, self.dictionary, self._slots, self)
        for placer in placers:
            placer.listener = self.outbox
        fleet.listen(self)

    @staticmethod
    def _later(delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, call)

    def share_queue(self, queue: Queue) -> None:
        """Tell the others of this queue, and have it count their requests."""
        queue.listener = QueueTeller(queue, self.outbox)
        self.peers.queues = PeerQueues(queue)
        self.outbox.tells_queue = True

    @property
    def queues_shared(self) -> bool:
        """Whether the queues of all routers are known here."""
        return self.transport.up and self.peers.all_tell_queue

    @property
    def word(self) -> str:
        """For people: "shared", or "local only" when the others cannot be reached."""
        return "shared" if self.transport.up else "local only"

    @property
    def up(self) -> bool:
        """Whether the others can be reached."""
        return self.transport.up

    @property
    def lag(self) -> float:
        """Seconds from a batch sent to its coming back."""
        return self.transport.lag

    @property
    def routers(self) -> int:
        """Other routers that are alive."""
        return self.peers.alive

    @property
    def facts_sent(self) -> int:
        """Facts put into batches."""
        return self.outbox.sent

    @property
    def facts_received(self) -> int:
        """Facts of other routers that were applied."""
        return self.peers.received

    @property
    def facts_dropped(self) -> int:
        """Facts dropped because the queue was full."""
        return self.outbox.dropped

    @property
    def batches_sent(self) -> int:
        """Batches that were delivered."""
        return self.transport.sent

    @property
    def batches_received(self) -> int:
        """Batches of other routers that were applied."""
        return self.peers.batches

    @property
    def bytes_sent(self) -> int:
        """Bytes sent, commands included."""
        return self.transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes received, replies included."""
        return self.transport.bytes_received

    @property
    def skipped(self) -> int:
        """Batches that were garbage, chains that were not known."""
        return self.peers.bad + self.peers.unknown

    @property
    def errors(self) -> int:
        """Errors of the transport."""
        return self.transport.errors

    def start(self) -> None:
        """Start sending and receiving. Returns at once."""
        self._running = True
        self.transport.start(self)
        self._tick()

    async def ready(self, within: float) -> None:
        """Wait until what the others know is known here; at most `within` seconds, then alone."""
        try:
            async with asyncio.timeout(within):
                await self.transport.loaded()
        except TimeoutError:
            log.warning(
                "state: could not load what other routers know within %g s; starting without it",
                within,
            )
            return
        peers = self.peers
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(IN_FLIGHT_WAIT_S):
                while peers.in_flight_missing():
                    peers.in_flight_heard.clear()
                    await peers.in_flight_heard.wait()

    async def stop(self) -> None:
        """Say goodbye and end."""
        self._running = False
        if self._ticking is not None:
            self._ticking.cancel()
        self.outbox.bye()
        await self.transport.stop()

    def _tick(self) -> None:
        now = time.monotonic()
        peers = self.peers
        peers.expire(now)
        self.outbox.trim()
        if peers.wants_in_flight:
            peers.wants_in_flight = False
            self.outbox.hello()
        elif now - self._sent_in_flight_at > IN_FLIGHT_INTERVAL_S:
            self._sent_in_flight_at = now
            self.outbox.send_in_flight()
        self.transport.tick()
        self._ticking = asyncio.get_running_loop().call_later(TICK_INTERVAL_S, self._tick)

    # The fleet

    def on_added(self, replica: Replica) -> None:
        """Facts about it mean something from now on."""
        key = name_key(replica.name)
        self._keys[replica.slot] = key
        self._slots[key] = replica.slot
        self.names[replica.slot] = replica.name
        if self._running:
            self.transport.load_again()

    def on_removed(self, replica: Replica) -> None:
        """What the others have there is over as far as this router knows."""
        slot = replica.slot
        self.peers.left(slot, time.monotonic())
        self._slots.pop(self._keys.pop(slot, 0), None)
        self.names.pop(slot, None)
        self._forgot_at.pop(slot, None)

    def on_resized(self, replica: Replica) -> None:
        """Tell those who cannot read it."""
        if replica.kv_tokens_known:
            self.outbox.resized(self._keys[replica.slot], replica.kv_tokens)

    def emptied(self, replica: Replica) -> bool:
        """This router saw a replica restart. False when another router told of it before: what was
        recorded since then is there.
        """
        now = time.monotonic()
        if now - self._forgot_at.get(replica.slot, -SAME_RESTART_S) < SAME_RESTART_S:
            return False
        self._forgot_at[replica.slot] = now
        self.outbox.forgot(self._keys[replica.slot])
        return True

    def apply_peer_forgot(self, slot: int, asked: bool) -> None:
        """Another router saw a replica restart, or somebody flushed it."""
        now = time.monotonic()
        if not asked and now - self._forgot_at.get(slot, -SAME_RESTART_S) < SAME_RESTART_S:
            return
        self._forgot_at[slot] = now
        self.index.forget(slot)

    def apply_peer_resized(self, slot: int, tokens: int) -> None:
        """Another router read a cache's size."""
        replica = self._fleet.replicas[slot]
        if replica is not None and not replica.kv_tokens_known:
            replica.load.kv_capacity = float(tokens)
            self._resize(slot, tokens + replica.offload_tokens)

    def _kept(self, slot: int, key: int) -> None:
        """A replica of this router keeps a response or a conversation."""
        self.outbox.kept(self._keys[slot], key)

    def apply_peer_kept(self, slot: int, key: int) -> None:
        """Another router saw a replica make one."""
        if self._holders is not None:
            self._holders.heard(key, slot)

    # What transports ask

    def adopt(self, slot: int, found: CacheSnapshot) -> None:
        """Put a map into the index."""
        adopt(self.index, slot, found, self.dictionary, time.monotonic())

    def touches(self, slot: int, since: float = 0.0) -> Iterable[tuple[float, Chain]]:
        """What a slot holds."""
        return self.index.touches(slot, since)

    def resend_from_index(self) -> Iterator[bytes]:
        """Batches that make up for facts given up: all used since the first of them."""
        since, self.outbox.lost_since = self.outbox.lost_since, 0.0
        now = time.monotonic()
        return self.outbox.resend_from_index(
            (self._keys[slot], max(now - when, 0.0), chain)
            for slot in list(self.names)
            for when, chain in self.index.touches(slot, since)
        )

    def key(self, slot: int) -> int:
        """The name_key of a slot."""
        return self._keys[slot]
