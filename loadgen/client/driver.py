"""Plays a plan against targets: sessions in order, requests on time, one record for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from loadgen.client.answer import Answer
from loadgen.client.body import BodyMaker
from loadgen.client.connection import Call
from loadgen.client.target import Target
from loadgen.results.records import Records
from loadgen.workloads.arrivals import Closed
from loadgen.workloads.bound import UpperBound
from loadgen.workloads.plan import Plan
from loadgen.workloads.types import Session

TICK = 0.25
"""Seconds between two looks at the clock while a run goes on."""
RATE_SECONDS = 5.0
"""What "now" covers in a rate."""


class ReplicaProgress(NamedTuple):
    """What one replica has answered so far."""

    name: str
    requests: int
    hit_rate: float | None
    """None while the engine has not told."""


class Progress:
    """Where a run stands, for whoever watches it. Only the driver writes."""

    __slots__ = (
        "_by_replica",
        "_ticks",
        "cached_tokens",
        "ended",
        "failed",
        "now",
        "prompt_tokens",
        "recent",
        "sent",
    )

    def __init__(self, replicas: Sequence[str] = ()) -> None:
        self.now = 0.0
        self.sent = self.ended = self.failed = 0
        self.prompt_tokens = self.cached_tokens = 0
        self.recent: deque[float] = deque(maxlen=500)
        """The last TTFTs, seconds."""
        self._by_replica = {name: [0, 0, 0] for name in replicas}
        """Requests, prompt tokens and cached tokens."""
        self._ticks: deque[tuple[float, int]] = deque(maxlen=int(RATE_SECONDS / TICK) + 1)
        """(now, ended) at the last ticks."""

    def answered(self, replica: str, prompt_tokens: int, cached_tokens: int) -> None:
        """Count an answer; an empty replica is one that was not told, -1 cached tokens too."""
        told = cached_tokens >= 0
        if told:
            self.prompt_tokens += prompt_tokens
            self.cached_tokens += cached_tokens
        if replica:
            counts = self._by_replica.setdefault(replica, [0, 0, 0])
            counts[0] += 1
            if told:
                counts[1] += prompt_tokens
                counts[2] += cached_tokens

    def tick(self, now: float) -> None:
        """Move the clock, seconds from the start."""
        self.now = now
        self._ticks.append((now, self.ended))

    @property
    def rate(self) -> float:
        """Requests a second that ended in the last RATE_SECONDS."""
        if len(self._ticks) < 2:
            return 0.0
        (since, before), (now, ended) = self._ticks[0], self._ticks[-1]
        return (ended - before) / (now - since)

    @property
    def replicas(self) -> list[ReplicaProgress]:
        """Those named beforehand, in that order, then others that answered."""
        return [
            ReplicaProgress(name, requests, cached / prompt if prompt else None)
            for name, (requests, prompt, cached) in self._by_replica.items()
        ]


class Options(msgspec.Struct, frozen=True):
    """How the driver treats requests."""

    timeout: float = 600.0
    """Seconds from sending to the last byte."""
    declared_answers: bool = False
    """Repeat the workload's answers in later prompts instead of those received."""
    block_tokens: int = 16
    """The engine's block size, for the upper bound."""
    pause_scale: float = 1.0
    """Multiplies the pauses between the steps of a session."""


class _Running:
    """A session under way: which steps have ended, and what they answered."""

    __slots__ = ("answers", "keep", "left", "session", "waiting")

    def __init__(self, session: Session, *, keep: bool) -> None:
        self.session = session
        self.waiting = [len(step.after) for step in session.steps]
        self.left = len(session.steps)
        self.answers: dict[int, bytes] = {}
        awaited = {before for step in session.steps for before in step.after}
        self.keep = awaited if keep else set()


class Driver:
    """Mutable state of a run: sessions under way, calls in flight, records.

    Several targets are used in turn, which is round robin without a gateway. ``names`` says what
    a replica is shown as, by what a gateway calls it and, with several targets, by its URL; others
    are shown as they are called. Without ``by_url`` the targets are routers, which are no
    replicas. ``records`` is filled from the start, if given."""

    def __init__(
        self,
        plan: Plan,
        targets: Sequence[Target],
        maker: BodyMaker,
        options: Options | None = None,
        *,
        names: Mapping[str, str] | None = None,
        by_url: bool = True,
        records: Records | None = None,
    ) -> None:
        self._plan = plan
        self._targets = targets
        self._maker = maker
        self._options = options or Options()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._bound = UpperBound(self._options.block_tokens)
        self._start = 0.0
        self._turn = 0
        self._running = 0
        self._pending: set[asyncio.TimerHandle] = set()
        self._calls: set[Call] = set()
        self._exhausted = False
        self._idle = asyncio.Event()
        self._ended = asyncio.Event()
        self.records = Records() if records is None else records
        self._names = names or {}
        self._by_url = by_url and len(targets) > 1
        self.progress = Progress(list(dict.fromkeys(self._names.values())))
        self.not_sent = 0
        """Steps left out because one before them failed."""

    async def run(self) -> Records:
        """Play the plan to its end and return what happened. Cancelling it closes everything."""
        self._start = self._clock()
        watch = self._loop.create_task(self._watch())
        try:
            await self._admit()
            self._exhausted = True
            if self._running:
                await self._idle.wait()
        finally:
            watch.cancel()
            for timer in self._pending:
                timer.cancel()
            for call in list(self._calls):
                self._drop(call, "cancelled")
            for target in self._targets:
                await target.close()
        return self.records

    async def _admit(self) -> None:
        """Start sessions when they are due, or when there is room for one."""
        plan = self._plan
        most = plan.arrivals.concurrency if isinstance(plan.arrivals, Closed) else 0
        for at, session in plan.sessions():
            wait = self._start + at - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            while most and self._running >= most:
                self._ended.clear()
                await self._ended.wait()
            now = self._clock() - self._start
            if plan.duration and now >= plan.duration and most:
                return
            self._running += 1
            running = _Running(session, keep=not self._options.declared_answers)
            base = max(at, now) if most else at
            for number, step in enumerate(session.steps):
                if not step.after:
                    self._later(running, number, base + step.pause * self._options.pause_scale)

    def _later(self, running: _Running, number: int, at: float) -> None:
        """Send a step at its time, seconds from the start."""
        if self._over(at):
            self._give_up(running, number)
            return
        delay = self._start + at - self._clock()
        if delay <= 0:
            self._send(running, number, at)
            return

        def fire() -> None:
            self._pending.discard(timer)
            self._send(running, number, at)

        timer = self._loop.call_later(delay, fire)
        self._pending.add(timer)

    def _over(self, at: float) -> bool:
        plan = self._plan
        return bool(plan.duration) and at >= plan.duration and not plan.finish

    def _give_up(self, running: _Running, number: int) -> int:
        """Leave out a step and all that wait for it. Returns how many that were."""
        lost = {number}
        for later in range(number + 1, len(running.session.steps)):
            if not lost.isdisjoint(running.session.steps[later].after):
                lost.add(later)
        fresh = [step for step in lost if running.waiting[step] >= 0]
        for step in fresh:
            running.waiting[step] = -1
        self._left(running, len(fresh))
        return len(fresh)

    def _send(self, running: _Running, number: int, at: float) -> None:
        session = running.session
        step = session.steps[number]
        possible, length = self._bound.add_sized(step, self._maker.sizes(step, running.answers))
        api = self._maker.api_of(step)
        answer = Answer(keep_text=number in running.keep, api=api)

        def done(call: Call) -> None:
            self._done(running, number, at, possible / max(1, length), call)

        body = self._maker.body(step, running.answers)
        target = self._targets[self._turn]
        self._turn = (self._turn + 1) % len(self._targets)
        name = f"{self._plan.seed}-{session.number}-{step.thread}"
        call = Call(target.message(body, name, api.path), answer, done)
        call.tokens = length
        if self._by_url:
            call.replica = target.url
        self._calls.add(call)
        self.progress.sent += 1
        target.send(call)

    def _done(self, running: _Running, number: int, at: float, possible: float, call: Call) -> None:
        self._calls.discard(call)
        now = self._clock() - self._start
        answer, step, progress = call.answer, running.session.steps[number], self.progress
        call.replica = self._names.get(call.replica, call.replica)
        counted = at >= self._plan.warmup
        if counted:
            self._record(running.session.number, number, at, possible, call)
        progress.ended += 1
        if answer.reason:
            progress.failed += 1
            running.waiting[number] = 0
            self._give_up_after(running, number)
        else:
            if counted:
                self.records.gaps.extend(answer.gaps)
            progress.recent.append(answer.first - self._start - at)
            progress.answered(call.replica, answer.prompt_tokens, answer.cached_tokens)
            if answer.texts:
                quoted = msgspec.json.encode("".join(answer.texts))
                running.answers[step.output.id] = quoted[1:-1]
            self._follow(running, number, now)
        self._left(running, 1)

    def _record(self, session: int, number: int, at: float, possible: float, call: Call) -> None:
        answer = call.answer
        zero = self._start + self._plan.warmup
        length = answer.prompt_tokens if answer.prompt_tokens > 0 else call.tokens
        self.records.add(
            session=session,
            step=number,
            scheduled=at - self._plan.warmup,
            sent=call.sent - zero,
            first=answer.first - zero,
            end=answer.last - zero,
            tokens=length,
            possible_tokens=round(possible * length),
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            replica=call.replica,
            reason=answer.reason,
            decision=call.decision,
        )

    def _follow(self, running: _Running, number: int, now: float) -> None:
        """A step has ended: those that waited for it alone are due after their pause."""
        steps = running.session.steps
        for later in range(number + 1, len(steps)):
            if number in steps[later].after and running.waiting[later] > 0:
                running.waiting[later] -= 1
                if running.waiting[later] == 0:
                    pause = steps[later].pause * self._options.pause_scale
                    self._later(running, later, now + pause)

    def _give_up_after(self, running: _Running, number: int) -> None:
        for later in range(number + 1, len(running.session.steps)):
            if number in running.session.steps[later].after and running.waiting[later] > 0:
                self.not_sent += self._give_up(running, later)

    def _left(self, running: _Running, steps: int) -> None:
        running.left -= steps
        if running.left == 0 and steps:
            self._running -= 1
            self._ended.set()
            if self._exhausted and not self._running:
                self._idle.set()

    async def _watch(self) -> None:
        """Ends calls that take too long, and moves the progress clock."""
        while True:
            await asyncio.sleep(TICK)
            now = self._clock()
            self.progress.tick(now - self._start)
            late = [call for call in self._calls if now - call.sent > self._options.timeout]
            for call in late:
                self._drop(call, "timeout")

    def _drop(self, call: Call, reason: str) -> None:
        connection = call.on
        if connection is not None:
            connection.abort()
        call.end(reason)
