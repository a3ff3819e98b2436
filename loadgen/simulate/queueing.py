"""The gateway's own queue in virtual time: one for each simulated router."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from loadgen.engine import Engine
from loadgen.simulate.prepare import BYTES_PER_TOKEN, Job
from loadgen.workloads import chain_at
from router.config.queueing import QueueSettings
from router.queue.door import prefix_of
from router.queue.peers import PeerQueues
from router.queue.queue import TICK_S, Queue
from router.queue.session import Session, Tail
from router.queue.ticket import Refusal, Ticket
from router.scheduling.placer import Placement, Placer

READ_S = 1.0
"""Seconds between readings of the engines' KV usage."""


Sender: TypeAlias = Callable[[int, Placement, float], None]
"""Sends a request to its engine: (router, placement, now)."""


class OneQueue(Protocol):
    """What the loop tells the queue of one router: see ``router.queue.queue.Queue``."""

    def offer(self, ticket: Ticket, now: float) -> None: ...

    def first_token(self, ticket: Ticket, now: float) -> None: ...

    def ended(self, ticket: Ticket, now: float, output: float = 0.0) -> None: ...

    def gone(self, ticket: Ticket, now: float) -> None: ...


class Holding(OneQueue, Protocol):
    """Another gateway's."""

    def polled(self, now: float) -> None:
        """The engines' metrics were read."""


class Routers(Protocol):
    """The simulated gateways."""

    eligible: int
    placers: list[Placer]
    later: Callable[[float, Callable[[float], None]], None]
    """Schedules a call."""

    def choose(self, router: int, job: Job, eligible: int, now: float) -> Placement: ...

    def failed(self, router: int, placement: Placement, now: float) -> None: ...

    def tell(
        self,
        router: int,
        now: float,
        fact: Callable[[int, float], None],
        *,
        at_once: bool = False,
    ) -> None: ...


class Asked:
    """One request at one router. Implements ``router.queue.ticket.Owner``."""

    __slots__ = ("_gateways", "_job", "_refused", "_router", "_send", "_spans", "ticket")

    def __init__(
        self,
        gateways: Routers,
        router: int,
        job: Job,
        send: Sender,
        refused: Callable[[Refusal, float], None],
        spans: Sequence[int],
        now: float,
        *,
        by_prompt: bool,
        limit: float,
    ) -> None:
        self._gateways = gateways
        self._router = router
        self._job = job
        self._send = send
        self._refused = refused
        self._spans = spans
        size = job.prompt_tokens * BYTES_PER_TOKEN
        self.ticket = Ticket(
            self,
            now,
            job.chain,
            size,
            tenant=job.tenant,
            priority=job.priority,
            limit=limit,
            session="" if by_prompt else job.key,
        )
        blocks = len(job.chain)
        if by_prompt and blocks:
            length = size - spans[blocks]
            self.ticket.tail = Tail(job.chain[-1], length, self.tail_digest(blocks, length))

    def eligible(self) -> int:
        return self._gateways.eligible

    def uncached(self) -> float:
        job = self._job
        found = self._gateways.placers[self._router].index.match(job.chain)
        return job.prompt_tokens - (found[0][0] / BYTES_PER_TOKEN if found else 0.0)

    def tail_digest(self, blocks: int, length: int) -> int:
        tokens = (self._spans[blocks] + length) // BYTES_PER_TOKEN
        if tokens > self._job.prompt_tokens:
            return -1
        return chain_at(self._job.prompt, np.asarray([tokens], dtype=np.int64))[0]

    def place(self, eligible: int, now: float) -> Placement:
        return self._gateways.choose(self._router, self._job, eligible, now)

    def unplace(self, placement: Placement, now: float) -> None:
        self._gateways.failed(self._router, placement, now)

    def send(self, placement: Placement, now: float) -> None:
        self._send(self._router, placement, now)

    def refuse(self, refusal: Refusal, now: float) -> None:
        self._refused(refusal, now)


class Queues:
    """The queues of all routers, and what they tell each other. Implements
    ``router.queue.listener.QueueListener`` for each, by the ticket's own router."""

    def __init__(self, gateways: Routers, settings: QueueSettings, placers: Sequence[Placer]):
        self._gateways = gateways
        self.all = [
            Queue(placer.loads, settings, wake=gateways.later, seed=number)
            for number, placer in enumerate(placers)
        ]
        self._peers = [PeerQueues(queue) for queue in self.all]
        self._heard: list[dict[int, tuple[Ticket, Session]]] = [{} for _ in self.all]
        if len(self.all) > 1:
            for number, queue in enumerate(self.all):
                queue.routers = len(self.all)
                queue.listener = _Tell(self, number)

    def begin(self, engines: Sequence[Engine], more: Callable[[], bool]) -> None:
        """Tick and read the engines as long as there is more to come."""
        later = self._gateways.later

        def tick(now: float) -> None:
            for queue in self.all:
                queue.tick(now)
            if more() or any(queue.waiting for queue in self.all):
                later(now + TICK_S, tick)

        def read(now: float) -> None:
            for queue in self.all:
                for slot, engine in enumerate(engines):
                    queue.read(slot, engine.kv_usage, now)
            if more():
                later(now + READ_S, read)

        later(TICK_S, tick)
        later(READ_S, read)

    def hear(self, router: int, now: float, fact: Callable[[int, float], None]) -> None:
        """Tell the others at once, as what is sent is told."""
        self._gateways.tell(router, now, fact, at_once=True)

    def apply_placed(
        self, other: int, ticket: Ticket, slot: int, uncached: float, now: float
    ) -> None:
        session = self._peers[other].placed(
            ticket, prefix_of(ticket), uncached, ticket.expected_own, slot, now
        )
        self._heard[other][id(ticket)] = (ticket, session)

    def apply_answered(self, other: int, ticket: Ticket, own: float, now: float) -> None:
        found = self._heard[other].pop(id(ticket), None)
        if found is not None:
            self._peers[other].answered(found[1], own, ticket.tail, now)

    def apply_gone(self, other: int, ticket: Ticket, now: float) -> None:
        found = self._heard[other].pop(id(ticket), None)
        if found is not None:
            self._peers[other].gone(found[1], now)

    def peer(self, other: int) -> PeerQueues:
        return self._peers[other]


class _Tell:
    """Tells the other routers of one router's requests."""

    def __init__(self, queues: Queues, router: int) -> None:
        self._queues = queues
        self._router = router

    def _others(self, now: float, fact: Callable[[int, float], None]) -> None:
        self._queues.hear(self._router, now, fact)

    def placed(self, ticket: Ticket, now: float) -> None:
        placement = ticket.placement
        assert placement is not None
        slot, uncached = placement.slot, placement.uncached
        queues = self._queues
        self._others(now, lambda other, at: queues.apply_placed(other, ticket, slot, uncached, at))

    def held(self, ticket: Ticket, now: float) -> None:
        slot, what, tokens = _waits(ticket)
        queues = self._queues
        self._others(now, lambda other, _: queues.peer(other).held(slot, *what, tokens))

    def left(self, ticket: Ticket, now: float) -> None:
        slot, what, tokens = _waits(ticket)
        queues = self._queues
        self._others(now, lambda other, at: queues.peer(other).unheld(slot, *what, tokens, at))

    def sent(self, ticket: Ticket, now: float) -> None:
        slot, what, tokens = _waits(ticket)
        queues = self._queues
        was_held = ticket.was_held

        def tell(other: int, at: float) -> None:
            queues.peer(other).sent(slot, *what, tokens, at)
            if was_held:
                queues.peer(other).unheld(slot, *what, tokens, at)

        self._others(now, tell)

    def first_token(self, ticket: Ticket, now: float) -> None:
        slot, _, tokens = _waits(ticket)
        queues = self._queues
        self._others(now, lambda other, at: queues.peer(other).first_token(slot, tokens, at))

    def answered(self, ticket: Ticket, own: float, now: float) -> None:
        queues = self._queues
        self._others(now, lambda other, at: queues.apply_answered(other, ticket, own, at))

    def gone(self, ticket: Ticket, now: float) -> None:
        queues = self._queues
        self._others(now, lambda other, at: queues.apply_gone(other, ticket, at))


def _waits(ticket: Ticket) -> tuple[int, tuple[int, str], float]:
    placement = ticket.placement
    assert placement is not None
    return placement.slot, (ticket.priority, ticket.tenant), placement.uncached
