"""The discrete-event loop: one arm of a simulation, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import inf

import msgspec

from loadgen.engine import Engine, EngineParams, Request
from loadgen.results.records import Records
from loadgen.simulate.fleet import Arrangement, Gateways, Gauge
from loadgen.simulate.prepare import Job, Prepared
from router.scheduling.placer import Placement
from router.telemetry.ledger import Ledger, deliverable
from router.telemetry.record import Finished


class Flight(msgspec.Struct, gc=False):
    """A request under way: the engine's ``Request.tag``."""

    jobs: list[Job]
    waits: list[int]
    """Steps each job of the session still waits for."""
    job: Job
    due: float
    router: int
    placement: Placement


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
    ) -> None:
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
        )
        self._polled = arrangement.polled

    def run(self) -> Records:
        """Run to the end of the last request."""
        for _ in range(self._closed or 1):
            self._next_session(0.0)
        if self._polled:
            self._poll(0.0)
        heap, engines, queued = self._heap, self.engines, self._queued
        while heap:
            now, _, what = heappop(heap)
            if not isinstance(what, int):
                what(now)
                continue
            if queued[what] != now:
                continue
            engine = engines[what]
            result = engine.step()
            for request in result.first_tokens:
                flight: Flight = request.tag
                self.gateways.first_token(flight.router, flight.placement, now)
            for request in result.finished:
                self._finished(request, now)
            queued[what] = due = engine.due
            if due < inf:
                self._order += 1
                heappush(heap, (due, self._order, what))
        return self.records

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
        router, placement = self.gateways.place(job, now)
        slot = placement.slot
        flight = Flight(jobs, waits, job, now, router, placement)
        request = Request(
            job.prompt_tokens, job.output_tokens, job.hashes, job.output_hashes, flight
        )
        engine = self.engines[slot]
        try:
            engine.add(request, now)
        except ValueError:
            self.gateways.failed(router, placement, now)
            self._record(flight, now, request, "too_long")
            return
        due = engine.due
        if self._queued[slot] != due:
            self._queued[slot] = due
            self._order += 1
            heappush(self._heap, (due, self._order, slot))

    def _finished(self, request: Request, now: float) -> None:
        flight: Flight = request.tag
        self.gateways.finished(
            flight.router, flight.placement, flight.job, request.cached_tokens, now
        )
        if flight.due >= self._warmup:
            self._reused(flight.placement, request)
        self._record(flight, now, request, "")

    def _reused(self, placement: Placement, request: Request) -> None:
        prompt, held = request.prompt_tokens, placement.held_tokens
        block = self.engines[placement.slot].params.block_size
        self.ledger.add(
            Finished(
                "",
                prompt_tokens=prompt,
                delivered=request.cached_tokens,
                available=placement.available_tokens,
                chosen=held,
                predicted=deliverable(held, prompt, block),
            )
        )

    def _record(self, flight: Flight, now: float, request: Request, reason: str) -> None:
        job, waits, jobs = flight.job, flight.waits, flight.jobs
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
                cached_tokens=request.cached_tokens,
                output_tokens=job.output_tokens if not reason else 0,
                replica=self._names[flight.placement.slot],
                reason=reason,
            )
        for number in job.then:
            waits[number] -= 1
            if not waits[number]:
                self._after(now, jobs[number], jobs, waits)
        waits[job.step] = -1
        if self._closed and all(left < 0 for left in waits):
            self._next_session(now)

    def _poll(self, now: float) -> None:
        gauges = [
            Gauge(len(engine.waiting), len(engine.running), engine.kv_usage)
            for engine in self.engines
        ]
        for placer in self.gateways.placers:
            placer.policy.polled(gauges)  # type: ignore[attr-defined]
        if self._heap:
            self._later(now + self._polled, self._poll)
