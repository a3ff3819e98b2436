"""Requests in the queue: how an exchange waits there, and what the queue is told of the fleet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

import xxhash

from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.prompt.tail import digest, tail
from router.queue.classes import Class, Classifier, Identity, level, objectives
from router.queue.departures import Departures, Quote
from router.queue.queue import Queue
from router.queue.session import Tail
from router.queue.ticket import HIGH, NORMAL, Refusal, Ticket
from router.scheduling.placer import Placement, Placer

if TYPE_CHECKING:
    from router.config import Settings
    from router.http.request import Request
    from router.prompt import Prompt

log = logging.getLogger(__name__)

UNSHARED_S: Final = 10.0
"""Seconds for which the door goes by what it knows, when other routers' sessions are not told any
more: letting in all that waits is what it is to prevent."""


class Waiter(Protocol):
    """An exchange, as far as the queue knows it."""

    ticket: Ticket | None

    @property
    def identity(self) -> Identity | None:
        """Who sent it, where tenants are set up."""

    def may_still_take(self, found: int) -> int:
        """Those that may take it now, after a wait. found: who they were before."""

    def send_to(self, placement: Placement) -> None:
        """Send it there."""

    def refused(self, refusal: Refusal) -> None:
        """It will not be sent."""

    def quote(self) -> Quote | None:
        """What it takes to answer it outside of the fleet; None where it may not leave, or nobody
        would take it now."""

    def leaves(self, why: str) -> bool:
        """Whether it leaves the fleet now."""

    def crashed(self, exc: Exception) -> None:
        """The router has failed on it."""


class QueuedRequest:
    """An exchange in the queue. Implements ``router.queue.ticket.Owner``."""

    __slots__ = ("_exchange", "_prompt", "_queue", "found", "fresh")

    def __init__(self, queue: RequestQueue, exchange: Waiter, prompt: Prompt, found: int) -> None:
        self._queue = queue
        self._exchange = exchange
        self._prompt = prompt
        self.found = found
        """Mask of the replicas that may take it."""
        self.fresh = True
        """They were found in this turn."""

    def eligible(self) -> int:
        if self.fresh:
            return self.found
        try:
            return self._exchange.may_still_take(self.found)
        except Exception as exc:  # one request must not keep the others waiting
            self._exchange.crashed(exc)
            return 0

    def uncached(self) -> float:
        return self._queue.placer.uncached(self._prompt)

    def tail_digest(self, blocks: int, length: int) -> int:
        return digest(self._prompt.text, blocks, length)

    def place(self, eligible: int, now: float) -> Placement | None:
        fleet = self._queue.fleet
        try:
            placement = self._queue.placer.place(self._prompt, eligible, now)
        except Exception as exc:  # a policy may be anybody's code
            self._exchange.crashed(exc)
            return None
        if fleet.half_open >> placement.slot & 1:
            fleet.admitted(placement.slot)
        return placement

    def unplace(self, placement: Placement, now: float) -> None:
        placement.failed(now)
        # Had it been let in as a trial, it proved nothing.
        self._queue.fleet.withdrawn(placement.slot)

    def send(self, placement: Placement, now: float) -> None:  # noqa: ARG002
        try:
            self._exchange.send_to(placement)
        except Exception as exc:
            self._exchange.crashed(exc)

    def quote(self) -> Quote | None:
        """What it takes to answer it outside of the fleet."""
        try:
            return self._exchange.quote()
        except Exception as exc:
            self._exchange.crashed(exc)
            return None

    def leaves(self, why: str) -> bool:
        """Whether it leaves the fleet now."""
        try:
            return self._exchange.leaves(why)
        except Exception as exc:
            self._exchange.crashed(exc)
            return True

    def refuse(self, refusal: Refusal, now: float) -> None:  # noqa: ARG002
        try:
            self._exchange.refused(refusal)
        except Exception as exc:
            self._exchange.crashed(exc)


class WayOut:
    """Out of the fleet, to overflow targets. Implements ``router.queue.departures.Exit``."""

    def quote(self, ticket: Ticket) -> Quote | None:
        """What it takes to answer it there."""
        owner = ticket.owner
        assert isinstance(owner, QueuedRequest)
        return owner.quote()

    def send(self, ticket: Ticket, why: str) -> bool:
        """Send it there. Whether it goes."""
        owner = ticket.owner
        assert isinstance(owner, QueuedRequest)
        return owner.leaves(why)


class RequestQueue(FleetListener):
    """The queue of this router, and what it is told of the fleet. Call `tick` twice a second."""

    def __init__(
        self, settings: Settings, fleet: Fleet, placer: Placer, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.fleet = fleet
        self.placer = placer
        self._loop = loop
        self._read_at: dict[int, float] = {}
        """By slot: when its engine's metrics were last read."""
        self._told: set[str] = set()
        self.other_routers: Callable[[], int] = lambda: 0
        """How many others send to the same replicas."""
        self.sessions_shared: Callable[[], bool] = lambda: True
        """Whether their sessions are known here."""
        self._shared_at = monotonic()
        self._knows_all = True
        """Their sessions are known, or were until just now."""
        self.queue = Queue(fleet.loads, settings, capacity=self._capacity, wake=self._wake)
        if settings.overflow:
            self.queue.departures = Departures(WayOut())
        self._aim = settings.overflow_ttft
        self._plain = Class(limit=settings.ttft_limit)
        """Of requests that say nothing."""
        self._trusted = settings.queue_trust_clients
        self._names = objectives(settings.queue_objectives)
        self._objectives: Mapping[str, int] = self._names
        """With those that a cluster knows."""
        self._classify = self._classifier(self._names)
        fleet.listen(self)

    def named(self, priorities: Mapping[str, int]) -> None:
        """The objectives that a cluster knows: name -> priority, higher first. They win over those
        of the settings."""
        names = {name: level(-number) for name, number in priorities.items()}
        self._objectives = {**self._names, **names}
        self._classify = self._classifier(self._objectives)

    def _classifier(self, names: Mapping[str, int]) -> Classifier:
        return Classifier(trusted=self._trusted, limit=self._plain.limit, names=names)

    def offer(
        self,
        exchange: Waiter,
        request: Request,
        prompt: Prompt,
        key: str,
        eligible: int,
        arrived: float,
    ) -> None:
        """A request has come. key: of its session. eligible: who may take it. arrived: when it
        came, on the monotonic clock in seconds; its time in the queue counts from then."""
        kind = self._plain
        identity = exchange.identity
        if request.hints is not None or prompt.priority is not None or identity is not None:
            kind = self._classify(request.hints, prompt.priority, identity)
        owner = QueuedRequest(self, exchange, prompt, eligible)
        ticket = Ticket(
            owner,
            arrived,
            prompt.chain,
            prompt.size,
            prompt.stream,
            kind.tenant,
            kind.priority,
            1.0,
            kind.limit,
            body=request.body_size,
        )
        if self.queue.departures is not None:
            ticket.aim = self._aim_of(kind, identity)
        if request.session and request.names_conversation:
            # A session is its tenant's: the key alone may be another's.
            named = f"{kind.tenant}\n{key}".encode()
            ticket.session = xxhash.xxh3_128_hexdigest(named)
        elif prompt.text and prompt.chain and self.queue.door.works:
            ticket.tail = Tail(prompt.chain[-1], *tail(prompt.text, len(prompt.chain)))
        exchange.ticket = ticket
        self.queue.offer(ticket, monotonic())
        prompt.text = b""
        owner.fresh = False

    def _aim_of(self, kind: Class, identity: Identity | None) -> float:
        """Seconds to the first token, beyond which it leaves the fleet if it may; 0 none. What is
        of low priority waits, unless its client says for how long."""
        aim = 0.0
        if kind.priority <= NORMAL:
            own = None if identity is None else identity.overflow_ttft
            aim = self._aim if own is None else own
        limit = kind.limit
        return min(aim, limit) if aim and limit else aim or limit

    def stays(self, exchange: Waiter, ticket: Ticket, prompt: Prompt, eligible: int) -> None:
        """It left for outside of the fleet, where nobody took it: it waits on in its old place, and
        for as long as it takes up to `queue_timeout`."""
        owner = QueuedRequest(self, exchange, prompt, eligible)
        anew = Ticket(
            owner,
            ticket.at,
            ticket.chain,
            ticket.size,
            ticket.stream,
            ticket.tenant,
            ticket.priority,
            limit=ticket.limit,
            session=ticket.session,
            body=ticket.body,
            tail=ticket.tail,
        )
        exchange.ticket = anew
        self.queue.offer(anew, monotonic())
        owner.fresh = False

    def again(self, ticket: Ticket, eligible: int) -> None:
        """Its attempt has failed. eligible: who may take it now."""
        owner = ticket.owner
        assert isinstance(owner, QueuedRequest)
        owner.found = eligible
        owner.fresh = True
        self.queue.again(ticket, monotonic())
        owner.fresh = False

    def tick(self, now: float) -> None:
        """Take in what the fleet has learned since, and let the queue's own time pass."""
        queue, fleet = self.queue, self.fleet
        queue.routers = 1 + self.other_routers()
        self._look_for_others(now)
        if queue.holds:
            for replica in fleet.members():
                engine, at = replica.engine, replica.engine_at
                if engine is None or engine.kv_usage is None:
                    continue
                if self._read_at.get(replica.slot) != at:
                    self._read_at[replica.slot] = at
                    queue.read(replica.slot, engine.kv_usage, at)
        if queue.held:
            for gate in tuple(queue.gates):
                if gate.lane.size and not fleet.usable >> gate.slot & 1:
                    queue.replica_out(gate.slot, now)
        queue.tick(now)

    def _look_for_others(self, now: float) -> None:
        """The door is off while there may be sessions that this router is not told of."""
        if self.sessions_shared():
            self._shared_at = now
        knows_all = now - self._shared_at <= UNSHARED_S
        if knows_all is self._knows_all:
            return
        self._knows_all = knows_all
        if not self.queue.door.share:
            return
        if knows_all:
            log.info("other routers' sessions are known again: new sessions wait (queue_door)")
        else:
            log.warning(
                "other routers' sessions are not known, since Redis cannot be reached or a router "
                "of an earlier version runs: new sessions do not wait (queue_door)"
            )

    @property
    def outcomes(self) -> Mapping[str, int]:
        return self.queue.outcomes

    @property
    def stretch(self) -> float:
        return self.queue.calibration.stretch

    @property
    def sessions(self) -> tuple[int, int]:
        """(active, idle)"""
        sessions = self.queue.door.sessions
        return sessions.count - sessions.idle_count, sessions.idle_count

    @property
    def work_seconds(self) -> float:
        """Prefill that waits, in seconds of one replica's time."""
        queue, members = self.queue, self.fleet.members()
        if not members or not queue.waiting:
            return 0.0
        rate = sum(replica.load.prefill_rate for replica in members) / len(members)
        lanes = [queue.door.sizes(), *(gate.lane.sizes() for gate in queue.gates)]
        return sum(tokens for lane in lanes for _, tokens in lane.values()) / rate

    def waiting(self) -> Mapping[tuple[int, str], int]:
        """(priority, where) -> requests. A retry counts as of high priority."""
        found: dict[tuple[int, str], int] = {}
        lanes = [("door", self.queue.door.sizes())]
        lanes += [("lane", gate.lane.sizes()) for gate in self.queue.gates]
        for where, lane in lanes:
            for priority, (size, _) in lane.items():
                key = max(priority, HIGH), where
                found[key] = found.get(key, 0) + size
        return found

    def kv_wanted(self, slot: int) -> float | None:
        """Share of the replica's KV memory that sessions want; None where there is no door."""
        door = self.queue.door
        return door.ratio(slot) if door.share and self._capacity(slot) else None

    def adopt(self, settings: Settings) -> None:
        """Settings that may change while it serves are others now: also for what waits."""
        queue = self.queue
        queue.settings = settings
        queue.door.share = settings.queue_door
        self._aim = settings.overflow_ttft
        self._plain = Class(limit=settings.ttft_limit)
        self._classify = self._classifier(self._objectives)
        # Turned off, the door lets in what waits there; later deadlines are tick's.
        queue.tick(monotonic())

    def drain(self) -> None:
        """The router stops: nothing waits for a session's turn any more."""
        self.queue.drain(monotonic())

    def on_removed(self, replica: Replica) -> None:
        """What waits for it goes elsewhere."""
        self._read_at.pop(replica.slot, None)
        self.queue.replica_left(replica.slot, monotonic())

    def on_resized(self, replica: Replica) -> None:
        """Say so where there is no door."""
        if replica.offload_tokens and self.queue.door.share:
            self._say_once(
                replica.name,
                f"replica {replica.name}: a tier behind its GPU keeps what its KV cache evicts, so "
                "new sessions do not wait for room there (queue_door)",
            )

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            log.info("%s", text)

    def _capacity(self, slot: int) -> float:
        """Tokens of KV memory that the door may go by. 0 where that is not known, where what is
        evicted is kept elsewhere, and where other routers' sessions are not known."""
        replica = self.fleet.replicas[slot]
        if replica is None or replica.offload_tokens or not self._knows_all:
            return 0.0
        return replica.load.kv_capacity

    def _wake(self, at: float, call: Callable[[float], None]) -> None:
        self._loop.call_later(max(0.0, at - monotonic()), lambda: call(monotonic()))


def queue_headers(ticket: Ticket) -> list[bytes]:
    """For a client that asked: how long it waited, and what was to be expected."""
    return [
        *(b"x-warmroute-queue-seconds", b"%.3f" % max(0.0, ticket.sent_at - ticket.at)),
        *(b"x-warmroute-queue-expected-seconds", b"%.3f" % ticket.expected_wait),
        *(b"x-warmroute-queue-ahead", b"%d" % ticket.ahead),
    ]
