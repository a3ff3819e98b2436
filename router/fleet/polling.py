"""Watching one replica: its health, models, metrics and rest, each read in a loop of its own.

A replica that hangs delays nobody: it has its own tasks and connections, and every read a limit.
What is read is handed to a ReadingHandler, the fleet, which decides what it means.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec

from router.config import Settings
from router.fleet import engine_metrics, models
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.engines import EngineKind, kind_by_metrics
from router.fleet.health import HealthState, probe
from router.fleet.models import ModelCard, parse_models
from router.fleet.poll_rate import PollRate
from router.fleet.reader import Answer, Failure, Reader, ReadError
from router.fleet.replica import Replica
from router.fleet.templates import Templates

log = logging.getLogger(__name__)

REFUSED_STATUSES = (401, 403)
ABSENT_STATUSES = (404, 405, 501)
IS_PAUSED = "/is_paused"
IS_SLEEPING = "/is_sleeping"
MAX_REST_BYTES = 4096
"""The most bytes of an answer of /is_sleeping or /is_paused that are read."""


class ReadingHandler(Protocol):
    """Receives what was read from a replica. All methods return at once."""

    def probed(self, replica: Replica) -> None:
        """The health probe succeeded, and the first reads of everything else are over."""

    def probe_failed(self, replica: Replica, failure: ReadError) -> None:
        """The health probe failed: no usable answer, or a bad status."""

    def kind_told(self, replica: Replica, kind: EngineKind) -> None:
        """Its metrics are those of this engine."""

    def models_told(self, replica: Replica, cards: tuple[ModelCard, ...]) -> None:
        """The replica listed its models."""

    def models_untold(self, replica: Replica, status: int) -> None:
        """The replica refuses to list its models, and will not be asked again."""

    def metrics_told(
        self, replica: Replica, metrics: EngineMetrics, most_own: Sequence[int]
    ) -> None:
        """A reading; most_own has for each rank how many requests of ours were in flight at most
        while it was taken."""

    def metrics_missing(self, replica: Replica, why: str) -> None:
        """The replica has no metrics, and will not be asked again."""

    def rest_told(self, replica: Replica, asleep: bool | None, paused: bool | None) -> None:
        """Whether it sleeps and whether it is paused; None leaves the value as it was."""


class ReplicaPoller:
    """The tasks that watch one replica."""

    def __init__(
        self,
        replica: Replica,
        reader: Reader,
        handler: ReadingHandler,
        templates: Templates,
        poll_rate: PollRate,
        settings: Settings,
    ) -> None:
        self._replica = replica
        self._reader = reader
        self._handler = handler
        self._templates = templates
        self._poll_rate = poll_rate
        self._settings = settings
        self._hurry = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._rest_paths: dict[str, bool] = {}
        """Those of its paths that are asked whether it rests; True: it has answered."""

    def start(self, delay: float) -> None:
        """Begin, after a delay that keeps a large fleet from being read all at once."""
        name = self._replica.name
        settings = self._settings
        self._tasks = [
            asyncio.create_task(self._watch_health(delay), name=f"health {name}"),
            asyncio.create_task(
                self._repeat(self.read_metrics, settings.metrics_interval), name=f"metrics {name}"
            ),
            asyncio.create_task(
                self._repeat(self.read_models, settings.models_interval), name=f"models {name}"
            ),
            asyncio.create_task(
                self._repeat(self.read_rest, settings.metrics_interval), name=f"rest {name}"
            ),
        ]

    def hurry(self) -> None:
        """Probe at once instead of at the next turn, because live traffic failed."""
        self._hurry.set()

    def reread_models(self) -> None:
        """Its models were changed through the admin port: read them without waiting for the next
        turn."""
        self._at_once(self.read_models)

    def reread_rest(self) -> None:
        """It was put to sleep, woken, paused or resumed: do not wait for the next turn."""
        self._at_once(self.read_metrics)
        self._at_once(self.read_rest)

    def _at_once(self, read: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.create_task(self._guarded(read), name="read at once")
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)

    def cancel(self) -> None:
        """Cancel the tasks; the handler is not called any more. Then await closed()."""
        for task in self._tasks:
            task.cancel()

    async def closed(self) -> None:
        """Wait for the tasks to end and close the connections."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()

    async def _watch_health(self, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._guarded(self._probe)
        # Spreads probes that began together.
        await self._sleep(self._settings.health_interval * random.random())
        while True:
            await self._guarded(self._probe)
            await self._sleep(self._wait())

    def _wait(self) -> float:
        health = self._replica.health
        wait = health.pause()
        return wait if health.suspect else self._poll_rate.stretch(wait)

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()
        await asyncio.sleep(self._replica.health.pause(hurried=True))

    async def _probe(self) -> None:
        health = self._replica.health
        try:
            kind = self._replica.kind
            patience = health.patience(self._settings.health_timeout) + kind.health_seconds
            await probe(self._reader, patience)
        except ReadError as failure:
            self._handler.probe_failed(self._replica, failure)
            return
        if health.state is not HealthState.READY:
            # known before the first request is sent there: what it serves, whether it restarted
            self._rest_paths = {IS_PAUSED: False, IS_SLEEPING: False}
            # The models say which engine it is, and so where its metrics are.
            await self.read_models()
            await asyncio.gather(self.read_metrics(), self.read_rest())
        self._handler.probed(self._replica)

    async def _repeat(self, read: Callable[[], Awaitable[None]], interval: float) -> None:
        while True:
            await asyncio.sleep(self._poll_rate.stretch(interval) * random.uniform(0.9, 1.1))
            if self._replica.health.state is HealthState.READY:
                await self._guarded(read)

    async def _guarded(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            await read()
        except Exception:
            log.exception("reading replica %s went wrong; going on", self._replica.name)

    async def read_models(self) -> None:
        """Read /v1/models and tell the handler. A read that fails changes nothing."""
        replica = self._replica
        if replica.models_given:
            return
        try:
            answer = await self._reader.get(
                "/v1/models", models.MAX_MODELS_BYTES, self._settings.health_timeout
            )
            if answer.status in REFUSED_STATUSES or answer.status in ABSENT_STATUSES:
                self._handler.models_untold(replica, answer.status)
                return
            if answer.status != 200:
                raise ReadError(f"/v1/models answered {answer.status}")
            cards = parse_models(answer.body)
        except (ReadError, ValueError) as error:
            level = logging.DEBUG if replica.models_read else logging.WARNING
            log.log(level, "replica %s: its models cannot be read: %s", replica.name, error)
            return
        self._handler.models_told(replica, cards)
        await self._templates.ask(replica.name, cards, self._reader, self._settings.health_timeout)

    async def read_metrics(self) -> None:
        """Read /metrics and tell the handler; a read that fails lets the last one grow stale."""
        replica = self._replica
        before = [each.external.own(each.load) for each in replica.ranks]
        for path in replica.kind.metrics_paths:
            try:
                answer = await self._reader.get(
                    path,
                    engine_metrics.MAX_METRICS_BYTES,
                    self._settings.health_timeout + replica.kind.metrics_seconds,
                )
            except ReadError as error:
                log.debug("replica %s: its metrics cannot be read: %s", replica.name, error)
                return
            if answer.status not in ABSENT_STATUSES:
                break
        if answer.status in REFUSED_STATUSES or answer.status in ABSENT_STATUSES:
            self._handler.metrics_missing(replica, f"{path} answered {answer.status}")
            return
        if answer.status != 200:
            log.debug("replica %s: %s answered %d", replica.name, path, answer.status)
            return
        metrics = self._parse_metrics(answer.body)
        if not metrics.told_anything:
            why = f"{path} has none of {replica.kind.title}'s names"
            self._handler.metrics_missing(replica, why)
            return
        after = [each.external.own(each.load) for each in replica.ranks]
        self._handler.metrics_told(replica, metrics, list(map(max, before, after)))
        if metrics.asleep is not None:
            self._rest_paths.pop(IS_SLEEPING, None)
            self._handler.rest_told(replica, metrics.asleep, None)

    def _parse_metrics(self, text: bytes) -> EngineMetrics:
        """Read it as the engine's own. An engine that its models do not name shows itself here."""
        replica = self._replica
        if not replica.kind.name:
            kind = kind_by_metrics(text)
            if kind is not None:
                self._handler.kind_told(replica, kind)
        return replica.kind.parse_metrics(text)

    async def read_rest(self) -> None:
        """Ask whether it rests, where its metrics do not tell. Engines have these paths in their
        development mode only; where one is not answered as they do, it is not asked again until
        the replica has been away."""
        for path, answered in tuple(self._rest_paths.items()):
            rests = None
            try:
                answer = await self._reader.get(path, MAX_REST_BYTES, self._settings.health_timeout)
                rests = rest_of(path, answer)
            except ReadError as error:
                if answered or error.failure is not Failure.BAD:
                    continue
            if path not in self._rest_paths:
                continue  # its metrics have told meanwhile
            if rests is None:
                del self._rest_paths[path]
            else:
                self._rest_paths[path] = True
            if path == IS_SLEEPING:
                self._handler.rest_told(self._replica, bool(rests), None)
            else:
                self._handler.rest_told(self._replica, None, bool(rests))


def rest_of(path: str, answer: Answer) -> bool | None:
    """What an answer to /is_paused or /is_sleeping says; None when it is none of an engine's."""
    if answer.status != 200:
        return None
    try:
        found = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    rests = found.get(path[1:]) if isinstance(found, dict) else None
    return rests if isinstance(rests, bool) else None
