"""What the other routers told, applied to this router's index and books.

The mutable state: each router heard of, with its requests in flight as charged to our books.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

import msgspec

from router.queue.peers import PeerQueues
from router.scheduling.peer_request import PeerRequest
from router.scheduling.placer import Placer
from router.state.chain_dictionary import ChainDictionary
from router.state.codec import (
    BYE,
    ENDED,
    FAILED,
    FINISHED,
    FIRST,
    FORGOT,
    FREED,
    HELD,
    HELLO,
    IN_FLIGHT,
    KEPT,
    MISSING,
    PLACED,
    RESIZED,
    ROUTED,
    SENT,
    BadBatchError,
    Fact,
    OpenRequest,
    read,
)
from router.state.outbox import Outbox
from router.state.peer_tickets import PeerTickets
from router.types import NO_CHAIN, Chain

log = logging.getLogger(__name__)

PEER_LEASE_S: Final = 4.0
"""Seconds of silence after which a router is taken for dead. It says something every second."""
PEER_MEMORY_S: Final = 600.0
"""Seconds for which the number of a silent router's last batch is kept."""


class Peer(msgspec.Struct):
    """What is known of another router."""

    heard_at: float
    number: int = 0
    """Of its last batch."""
    alive: bool = True
    expected: bool = False
    """It was said to live when this router loaded."""
    told_in_flight: bool = False
    """It has called the roll since it was first heard."""
    requests: dict[int, PeerRequest] = msgspec.field(default_factory=dict)
    tells_queue: bool = False
    """It tells of its queue, as routers before this version do not."""
    tickets: PeerTickets | None = None
    """Its requests in this router's queue; None where that is not shared."""


class ReplicaFacts(Protocol):
    """What is done beside index and books when a fact is about a replica."""

    def apply_peer_forgot(self, slot: int, asked: bool) -> None:
        """Its cache is empty, or is to be taken for that since somebody asked for it."""
        ...

    def apply_peer_resized(self, slot: int, tokens: int) -> None:
        """Its cache has room for so many tokens."""
        ...

    def apply_peer_kept(self, slot: int, key: int) -> None:
        """It keeps a response or a conversation."""
        ...


class Peers:
    """Applies batches. Times are monotonic seconds."""

    def __init__(
        self,
        placer: Placer,
        outbox: Outbox,
        dictionary: ChainDictionary,
        slots: dict[int, int],
        replicas: ReplicaFacts,
    ) -> None:
        """slots: name_key -> slot, kept by whoever made it."""
        self.others: dict[int, Peer] = {}
        self.received = 0
        """Facts of other routers that were applied."""
        self.batches = 0
        self.bad = 0
        """Batches that could not be read."""
        self.unknown = 0
        """Chains that referred to what the dictionary does not hold."""
        self.gaps = 0
        """Times that batches of a router were missing."""
        self.in_flight_heard = asyncio.Event()
        self.wants_in_flight = False
        """A router came back whose requests in flight were taken off the books."""
        self.own_seen = 0
        """Number of the last own batch that came back."""
        self._placer = placer
        self._outbox = outbox
        self._dictionary = dictionary
        self._slots = slots
        self._replicas = replicas
        self.queues: PeerQueues | None = None
        """This router's queue, where others' requests count in it."""

    @property
    def all_tell_queue(self) -> bool:
        """Whether every other router that lives tells of its queue."""
        return all(peer.tells_queue for peer in self.others.values() if peer.alive)

    @property
    def alive(self) -> int:
        """Other routers that live."""
        return sum(peer.alive for peer in self.others.values())

    def apply(self, data: bytes, now: float) -> bool:
        """A batch that came. False when some of its router's before it never did."""
        try:
            batch = read(data)
        except BadBatchError as error:
            self.bad += 1
            if self.bad & (self.bad - 1) == 0:  # the first, second, fourth, ...
                log.warning(
                    "state: skipped a batch from another router (%d so far): %s", self.bad, error
                )
            return True
        if batch.router == self._outbox.router:
            self.own_seen = max(self.own_seen, batch.number)
            return True
        peer = self.others.get(batch.router)
        whole = True
        if not batch.router:
            peer = Peer(now)  # not a router: the command line
        elif peer is None:
            peer = self.others[batch.router] = Peer(now)
        else:
            if batch.number <= peer.number:
                return True  # sent twice
            whole = batch.number == peer.number + 1
            self.gaps += not whole
        peer.number = batch.number
        peer.heard_at = now
        peer.tells_queue = batch.tells_queue
        if peer.tickets is None and self.queues is not None:
            peer.tickets = PeerTickets(self.queues)
        if not peer.alive:
            peer.alive = True
            self.wants_in_flight = True
        self.batches += 1
        self.received += len(batch.facts)
        for fact in batch.facts:
            self._fact(peer, fact, now)
        return whole

    def replay(self, data: bytes, before: dict[int, tuple[int, int]], at: tuple[int, int]) -> None:
        """A batch from before this router began to listen: only what replicas hold and keep counts.

        before: slot -> id up to which its map tells all; at: the batch's own id.
        """
        try:
            batch = read(data)
        except BadBatchError:
            self.bad += 1
            return
        if batch.router not in (0, self._outbox.router):
            peer = self.others.setdefault(batch.router, Peer(0.0, alive=False))
            peer.number = max(peer.number, batch.number)
        placer = self._placer
        for fact in batch.facts:
            kind = fact.kind
            if kind not in (ROUTED, HELD, FORGOT, KEPT):
                continue
            slot = self._slots.get(fact.replica)
            if kind == KEPT:
                if slot is not None:
                    self._replicas.apply_peer_kept(slot, fact.key)
                continue
            chain = NO_CHAIN if fact.tail is None else self._chain(fact)
            if slot is None or before.get(slot, (0, 0)) >= at:
                continue
            if kind == FORGOT:
                placer.index.forget(slot)
            elif chain:
                blocks = fact.depth + len(fact.tail or ())
                placer.index.record(slot, _cut(chain, blocks), 0.0)

    def expect(self, routers: set[int]) -> None:
        """These live, and will call the roll."""
        for router in routers:
            self.others.setdefault(router, Peer(0.0, alive=False)).expected = True

    def in_flight_missing(self) -> int:
        """Routers that live and have not told what they have in flight."""
        return sum(peer.expected and not peer.told_in_flight for peer in self.others.values())

    def expire(self, now: float) -> None:
        """Take back the charges of routers that have said nothing for LEASE."""
        for router, peer in list(self.others.items()):
            silent = now - peer.heard_at
            if peer.alive and silent > PEER_LEASE_S:
                log.warning(
                    "state: router %016x has been silent for %.1f s; its %d requests no longer "
                    "count as load",
                    router,
                    silent,
                    len(peer.requests),
                )
                self._bury(peer, now)
            elif silent > PEER_MEMORY_S:
                del self.others[router]

    def left(self, slot: int, now: float) -> None:
        """A replica left the fleet: end what the others have in flight on it."""
        for peer in self.others.values():
            for serial, request in list(peer.requests.items()):
                if request.slot == slot:
                    self._placer.apply_peer_failed(peer.requests.pop(serial), now)
            if peer.tickets is not None:
                peer.tickets.left(slot, now)

    def _bury(self, peer: Peer, now: float) -> None:
        peer.alive = False
        peer.told_in_flight = False
        requests, peer.requests = peer.requests, {}
        for request in requests.values():
            self._placer.apply_peer_failed(request, now)
        if peer.tickets is not None:
            peer.tickets.keep(set(), now)

    def _fact(self, peer: Peer, fact: Fact, now: float) -> None:
        kind = fact.kind
        placer = self._placer
        if kind == ROUTED:
            chain = self._chain(fact)
            slot = self._slots.get(fact.replica)
            if slot is None:
                return
            blocks = fact.depth + len(fact.tail or ()) if chain else 0
            routed = PeerRequest(slot, fact.size or 1, fact.uncached, fact.tokens, chain, blocks)
            placer.apply_peer_routed(routed, now)
            peer.requests[fact.serial] = routed
        elif kind == FIRST:
            request = peer.requests.get(fact.serial)
            if request is not None:
                placer.apply_peer_first_token(request, now)
                if peer.tickets is not None:
                    peer.tickets.first_token(fact.serial, now)
        elif kind in (FINISHED, FAILED):
            request = peer.requests.pop(fact.serial, None)
            if request is None:
                return
            if kind == FINISHED:
                placer.apply_peer_finished(request, now)
                if peer.tickets is not None:
                    peer.tickets.finished(fact.serial, now)
            else:
                placer.apply_peer_failed(request, now)
                if peer.tickets is not None:
                    peer.tickets.ended(fact.serial, None, None, now)
        elif kind in (PLACED, SENT, FREED, ENDED):
            self._queue_fact(peer, fact, now)
        elif kind == HELD:
            chain = self._chain(fact)
            slot = self._slots.get(fact.replica)
            if slot is not None and chain:
                blocks = fact.depth + len(fact.tail or ())
                placer.index.record(slot, _cut(chain, blocks), now - fact.age)
        elif kind == IN_FLIGHT:
            assert fact.open is not None
            self._reconcile(peer, fact.open, now)
        elif kind == HELLO:
            self._outbox.send_in_flight()
        elif kind == MISSING:
            self._dictionary.forget(fact.key)
        elif kind == BYE:
            self._bury(peer, now)
        else:
            slot = self._slots.get(fact.replica)
            if slot is None:
                return
            if kind == FORGOT:
                self._replicas.apply_peer_forgot(slot, not peer.number)
            elif kind == RESIZED:
                self._replicas.apply_peer_resized(slot, fact.size)
            elif kind == KEPT:
                self._replicas.apply_peer_kept(slot, fact.key)

    @staticmethod
    def _queue_fact(peer: Peer, fact: Fact, now: float) -> None:
        tickets, serial = peer.tickets, fact.serial
        if tickets is None:
            return
        if fact.queued is not None:
            request = peer.requests.get(serial)
            if request is not None:
                tickets.placed(serial, request, fact.queued, now)
        elif fact.kind == SENT:
            tickets.sent(serial, now)
        elif fact.kind == FREED:
            tickets.first_token(serial, now)
        else:
            tickets.ended(serial, fact.own, fact.end, now)

    def _chain(self, fact: Fact) -> Chain:
        """The book's array that begins with the fact's chain; empty when it is not known."""
        tail = fact.tail
        assert tail is not None
        if not fact.depth and not tail:
            return NO_CHAIN
        chain = self._dictionary.learn(fact.depth, fact.key, tail)
        if chain is None:
            self.unknown += 1
            self._outbox.missing(fact.key)
            return NO_CHAIN
        return chain

    def _reconcile(self, peer: Peer, entries: list[OpenRequest], now: float) -> None:
        """Make the peer's requests in flight those of its roll."""
        peer.told_in_flight = True
        self.in_flight_heard.set()
        requests = peer.requests
        told = {entry.serial for entry in entries}
        for serial in [serial for serial in requests if serial not in told]:
            self._placer.apply_peer_failed(requests.pop(serial), now)
        if peer.tickets is not None:
            peer.tickets.keep(told, now)
        for entry in entries:
            request = requests.get(entry.serial)
            if request is None:
                slot = self._slots.get(entry.replica)
                if slot is None:
                    continue
                request = requests[entry.serial] = PeerRequest(
                    slot, 1, entry.uncached, entry.tokens
                )
                self._placer.apply_peer_routed(request, now)
            if entry.first:
                self._placer.apply_peer_first_token(request, now)
                if peer.tickets is not None:
                    peer.tickets.first_token(entry.serial, now)


def _cut(chain: Chain, blocks: int) -> Chain:
    return chain if len(chain) == blocks else chain[:blocks]
