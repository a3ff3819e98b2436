"""The discrete-event loop: one arm of a simulation, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from math import inf, isnan

import msgspec

from loadgen.engine import Engine, EngineParams, Request
from loadgen.results.records import Records
from loadgen.simulate.apart import Fetches, FirstLeg
from loadgen.simulate.fleet import Arrangement, Gateways, Gauge
from loadgen.simulate.prepare import Job, Prepared
from loadgen.simulate.queueing import OneQueue
from router.queue.ticket import Ticket
from router.scheduling.placer import Placement
from router.telemetry.ledger import Ledger, deliverable
from router.telemetry.record import Finished


class Flight(msgspec.Struct, eq=False):
    """A request under way: the engine's ``Request.tag``."""

    jobs: list[Job]
    waits: list[int]
    """Steps each job of the session still waits for."""
    job: Job
    due: float
    router: int = 0
    placement: Placement | None = None
    ticket: Ticket | None = None
    request: Request | None = None
    leg: FirstLeg | None = None
    """Its prefill on another replica than the one that answers."""
    over: bool = False


class Change(msgspec.Struct, frozen=True):
    """An engine that becomes another: from its next step after so many seconds."""

    at: float
    slot: int
    params: EngineParams


class Outage(msgspec.Struct, frozen=True):
    """A replica that is lost after so many seconds, with its cache and what it was answering. At
    least one other has to stay."""

    at: float
    slot: int
    until: float = inf
    """When it is there again, its cache empty."""


class Loop:
    """Runs one arrangement over a prepared workload.

    The heap holds (time, order, call or engine's slot). An engine's entry is stale when the engine
    has been cut short or gone on since; the engine's own ``due`` tells.
    """

    def __init__(
        self,
        prepared: Prepared,
        arrangement: Arrangement,
        params: Sequence[EngineParams],
        spans: Sequence[int],
        *,
        routers: int,
        sync: float | None,
        seed: int,
        known_speed: bool,
        changes: Sequence[Change] = (),
        outages: Sequence[Outage] = (),
        patience: float = 0.0,
        prefill: int = 0,
    ) -> None:
        """patience: seconds after which a client without a first token leaves, and ends its
        session; 0: never. prefill: how many of the engines, the last ones, prefill for the others,
        in arrangements that have them apart."""
        self._patience = patience
        self.records = Records()
        self.ledger = Ledger()
        """As the gateway keeps it, of the requests in the records."""
        self.engines = [Engine(each) for each in params]
        self._names = [f"replica-{slot}" for slot in range(len(params))]
        self._heap: list[tuple[float, int, Callable[[float], None] | int]] = []
        self._order = 0
        self._queued = [inf] * len(params)
        self._closed = prepared.concurrency
        self._until = prepared.until
        self._warmup = prepared.warmup
        self._coming: Iterator[tuple[float, list[Job]]] = iter(prepared.sessions)
        self.gateways = Gateways(
            arrangement,
            self.engines,
            spans,
            routers=routers,
            sync=sync,
            seed=seed,
            known_speed=known_speed,
            later=self._later,
            prefill=prefill,
        )
        self._fetches = Fetches(self.engines, self._later, self._reschedule)
        if arrangement.apart and (outages or patience or self.gateways.queues is not None):
            raise ValueError(
                "prefill and decode apart are not simulated together with a queue, lost replicas "
                "or clients that leave"
            )
        self._polled = arrangement.polled
        for change in changes:
            self._later(change.at, partial(self._change, change))
        self._under_way: list[dict[Request, None]] = [{} for _ in params]
        """By replica, in the order of sending; kept only where replicas are lost."""
        self._watched = bool(outages)
        if outages and self.gateways.queues is not None:
            raise ValueError("lost replicas are not simulated together with a queue")
        for outage in outages:
            self._later(outage.at, partial(self._lose, outage.slot))
            if outage.until < inf:
                self._later(outage.until, partial(self._regain, outage.slot))

    def run(self) -> Records:
        """Run to the end of the last request."""
        self.begin()
        while self._heap:
            self.turn()
        return self.records

    def begin(self) -> None:
        """Let the first sessions start."""
        for _ in range(self._closed or 1):
            self._next_session(0.0)
        if self._polled:
            self._poll(0.0)
        self.gateways.begin(self._busy)

    @property
    def due(self) -> float:
        """When the next thing happens; infinity after the end."""
        return self._heap[0][0] if self._heap else inf

    def turn(self) -> None:
        """Let the next thing happen."""
        now, _, what = heappop(self._heap)
        if not isinstance(what, int):
            what(now)
            return
        if self._queued[what] != now:
            return
        engine = self.engines[what]
        result = engine.step()
        for request in result.first_tokens:
            flight: Flight = request.tag
            leg = flight.leg
            if leg is not None:
                self._first_token_apart(flight, leg, request, now)
                continue
            assert flight.placement is not None
            self.gateways.first_token(flight.router, flight.placement, now)
            if flight.ticket is not None:
                self._queue(flight).first_token(flight.ticket, now)
        for request in result.finished:
            self._finished(request, now)
        if engine.to_fetch:
            self._fetches.begin(what, now)
        self._queued[what] = due = engine.due
        if due < inf:
            self._order += 1
            heappush(self._heap, (due, self._order, what))

    def _change(self, change: Change, _: float) -> None:
        self.engines[change.slot].params = change.params

    def _lose(self, slot: int, now: float) -> None:
        """What has not begun to be answered goes to another replica, as the gateway sends it; what
        has fails."""
        engine = self.engines[slot]
        self.engines[slot] = Engine(engine.params)
        self._queued[slot] = inf
        self.gateways.lose(slot)
        requests = list(self._under_way[slot])
        self._under_way[slot].clear()
        for request in requests:
            flight: Flight = request.tag
            assert flight.placement is not None
            self.gateways.failed(flight.router, flight.placement, now)
            if not isnan(request.first_token_at):
                self._record(flight, now, request, "connection lost")
            else:
                self._offer(flight, now)

    def _regain(self, slot: int, _: float) -> None:
        self.gateways.regain(slot)

    def _later(self, at: float, call: Callable[[float], None]) -> None:
        self._order += 1
        heappush(self._heap, (at, self._order, call))

    def _next_session(self, now: float) -> None:
        """Start the next session when it is due; in an open loop, the one after it follows."""
        found = next(self._coming, None)
        if found is None:
            return
        at, jobs = found

        def start(at: float) -> None:
            waits = [job.waits for job in jobs]
            for job in jobs:
                if not job.waits:
                    self._after(at, job, jobs, waits)
            if not self._closed:
                self._next_session(at)

        self._later(max(at, now), start)

    def _after(self, now: float, job: Job, jobs: list[Job], waits: list[int]) -> None:
        if job.pause:
            self._later(now + job.pause, lambda at: self._send(at, job, jobs, waits))
        else:
            self._send(now, job, jobs, waits)

    def _send(self, now: float, job: Job, jobs: list[Job], waits: list[int]) -> None:
        if now >= self._until:
            return
        flight = Flight(jobs, waits, job, now)
        if self._patience:
            self._later(now + self._patience, partial(self._give_up, flight))
        self._offer(flight, now)

    def _offer(self, flight: Flight, now: float) -> None:
        """Place it and send it, or hand it to the queue."""
        job = flight.job
        if self.gateways.queues is None:
            self._start(flight, *self.gateways.place(job, now), now)
            return

        def send(router: int, placement: Placement, at: float) -> None:
            self._start(flight, router, placement, at)

        # The ticket is known before it is offered: it may be sent from within the call.
        self.gateways.offer(
            job,
            now,
            send,
            lambda refusal, at: self._lost(flight, at, f"refused_{refusal.why}"),
            partial(self._take, flight),
        )

    def _take(self, flight: Flight, router: int, ticket: Ticket) -> None:
        flight.router = router
        flight.ticket = ticket

    def _queue(self, flight: Flight) -> OneQueue:
        assert self.gateways.queues is not None
        return self.gateways.queues[flight.router]

    def _start(self, flight: Flight, router: int, placement: Placement, now: float) -> None:
        """Send it to its engine."""
        flight.router = router
        flight.placement = placement
        lacks = placement.uncached
        elsewhere = self.gateways.prefill(router, placement, flight.job, now)
        if elsewhere is None:
            self._run(flight, placement, now)
        else:
            self._prefill(flight, elsewhere, lacks, now)

    def _run(self, flight: Flight, placement: Placement, now: float) -> None:
        job, slot = flight.job, placement.slot
        request = flight.request = Request(
            job.prompt_tokens,
            job.output_tokens,
            job.hashes,
            job.output_hashes,
            flight,
            remote=flight.leg is not None,
            adapter=job.adapter,
        )
        try:
            self.engines[slot].add(request, now)
        except ValueError:
            self._lost(flight, now, "too_long")
            return
        if self._watched:
            self._under_way[slot][request] = None
        if self.engines[slot].to_fetch:
            self._fetches.begin(slot, now)
        self._reschedule(slot)

    def _prefill(self, flight: Flight, placement: Placement, lacks: float, now: float) -> None:
        """Its first leg."""
        job, slot = flight.job, placement.slot
        request = Request(
            job.prompt_tokens,
            1,
            job.hashes,
            job.output_hashes,
            flight,
            keep=True,
            adapter=job.adapter,
        )
        try:
            self.engines[slot].add(request, now)
        except ValueError:
            self.gateways.failed(flight.router, placement, now)
            self._lost(flight, now, "too_long")
            return
        flight.leg = FirstLeg(placement, request, lacks)
        self._reschedule(slot)

    def _first_token_apart(
        self, flight: Flight, leg: FirstLeg, request: Request, now: float
    ) -> None:
        if request is leg.request:
            self.gateways.first_token(flight.router, leg.placement, now)
            return
        assert flight.placement is not None
        self.gateways.first_token(flight.router, flight.placement, now)
        self.gateways.apart.saw(flight.router, leg.lacks, now - leg.handed_at)

    def _prefilled(self, flight: Flight, leg: FirstLeg, now: float) -> None:
        """The first leg is over: hand the blocks over."""
        self.gateways.finished(
            flight.router, leg.placement, flight.job, leg.request.cached_tokens, now, output=0
        )
        leg.handed_at = now
        assert flight.placement is not None
        self._run(flight, flight.placement, now)

    def _reschedule(self, slot: int) -> None:
        due = self.engines[slot].due
        if self._queued[slot] != due:
            self._queued[slot] = due
            if due < inf:
                self._order += 1
                heappush(self._heap, (due, self._order, slot))

    def _give_up(self, flight: Flight, now: float) -> None:
        """Its client has waited long enough."""
        if flight.over or (flight.request is not None and flight.request.first_token_at > 0.0):
            return
        if flight.request is not None:
            assert flight.placement is not None
            self.engines[flight.placement.slot].abort(flight.request, now)
            self._reschedule(flight.placement.slot)
        self._lost(flight, now, "gave_up")

    def _lost(self, flight: Flight, now: float, reason: str) -> None:
        """It ends without an answer."""
        placement, ticket = flight.placement, flight.ticket
        if placement is not None:
            self.gateways.failed(flight.router, placement, now)
        if ticket is not None:
            self._queue(flight).gone(ticket, now)
        job = flight.job
        self._record(flight, now, flight.request or Request(job.prompt_tokens, 1, ()), reason)

    def _finished(self, request: Request, now: float) -> None:
        flight: Flight = request.tag
        if flight.leg is not None and request is flight.leg.request:
            self._prefilled(flight, flight.leg, now)
            return
        placement = flight.placement
        assert placement is not None
        if self._watched:
            self._under_way[placement.slot].pop(request, None)
        if request.aborted:
            return
        self.gateways.finished(flight.router, placement, flight.job, request.cached_tokens, now)
        if flight.ticket is not None:
            self._queue(flight).ended(flight.ticket, now, flight.job.output_tokens)
        if flight.due >= self._warmup:
            self._reused(flight, placement, request)
        self._record(flight, now, request, "")

    def _reused(self, flight: Flight, placement: Placement, request: Request) -> None:
        prompt, held, delivered = (
            request.prompt_tokens,
            placement.held_tokens,
            request.cached_tokens,
        )
        if flight.leg is not None:
            held, delivered = flight.leg.placement.held_tokens, flight.leg.request.cached_tokens
        block = self.engines[placement.slot].params.block_size
        self.ledger.add(
            Finished(
                "",
                prompt_tokens=prompt,
                delivered=delivered,
                available=max(placement.available_tokens, held),
                chosen=held,
                predicted=deliverable(held, prompt, block),
            )
        )

    def _record(self, flight: Flight, now: float, request: Request, reason: str) -> None:
        job, waits, jobs = flight.job, flight.waits, flight.jobs
        flight.over = True
        placement = flight.placement
        if flight.due >= self._warmup:
            zero = self._warmup
            self.records.add(
                session=job.session,
                step=job.step,
                scheduled=flight.due - zero,
                sent=flight.due - zero,
                first=request.first_token_at - zero,
                end=now - zero,
                tokens=job.prompt_tokens,
                possible_tokens=job.possible,
                prompt_tokens=job.prompt_tokens,
                # What nobody had to compute.
                cached_tokens=(flight.leg.request if flight.leg else request).cached_tokens,
                output_tokens=job.output_tokens if not reason else 0,
                replica=self._names[placement.slot] if placement is not None else "",
                reason=reason,
                decision=placement.reason if placement is not None else "",
            )
        if reason.startswith(("refused", "gave_up")):
            waits[:] = [-1] * len(waits)  # its client does not go on
        for number in job.then:
            waits[number] -= 1
            if waits[number] == 0:
                self._after(now, jobs[number], jobs, waits)
        waits[job.step] = -1
        if self._closed and all(left < 0 for left in waits):
            self._next_session(now)

    def _busy(self) -> bool:
        """Whether anything is to come besides the queues' own tick or reading."""
        return len(self._heap) > 1

    def _poll(self, now: float) -> None:
        gauges = [
            Gauge(len(engine.waiting), len(engine.running), engine.kv_usage)
            for engine in self.engines
        ]
        self.gateways.polled(gauges, now)
        if self._heap:
            self._later(now + self._polled, self._poll)
