"""The fleet: who is in it, who may be sent requests, and who is told when that changes.

The mutable state is `replicas` and `loads` (by slot), the masks `usable` and `half_open`, and the
catalog of models. It changes on the event loop only, between two requests, so the hot path reads it
freely.

Replicas out of service are shown the way back by probes. Should every replica of a model be out,
`last_resort` names those that may be tried anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

from router.fleet.breaker import Breaker, BreakerState
from router.fleet.change_notifier import Changes
from router.fleet.health import Health, HealthState
from router.fleet.listener import FleetListener
from router.fleet.models import Catalog, ModelCard, named_card
from router.fleet.poll_rate import Pace
from router.fleet.polling import Watch
from router.fleet.reader import Failure, Reader, ReadError, tls_context
from router.fleet.replica import Replica, parse_address
from router.fleet.replica_updater import Findings
from router.fleet.settings import FleetSettings
from router.fleet.slow_start import SlowStart
from router.fleet.templates import Templates
from router.types import Load, slots

log = logging.getLogger(__name__)

FaultReason = Literal["connect", "timeout", "died", "status"]

TICK = 0.1
"""Seconds between two looks at what only time changes: cooldowns, slow starts, stale metrics."""
STALE_AFTER = 3
"""Metrics intervals after which a reading is not used any more."""
NO_CONNECTION = ReadError("live traffic could not connect", Failure.REFUSED)


class Fleet:
    """Membership, masks, passive and active health.

    Raises ValueError for a URL or a CA file it cannot use, with its name and the reason.
    """

    def __init__(
        self, settings: FleetSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings = settings
        self.replicas: list[Replica | None] = []
        self.loads: list[Load] = []
        self.usable = 0
        """Mask of the replicas that may be sent requests: ready, breaker not open, not draining."""
        self.half_open = 0
        """Those of them whose breaker admits one trial: call admitted() when one is chosen."""
        self._clock = clock
        self._catalog = Catalog()
        self.templates = Templates()
        """What is known of each model's chat template."""
        self._listeners: list[FleetListener] = []
        self._changes = Changes()
        self.tls = tls_context(settings)
        """What https replicas are connected to with."""
        self.pace = Pace()
        """How often it is read."""
        self._slow_start = SlowStart(settings.slow_start)
        self._findings = Findings(
            settings,
            clock,
            self._catalog,
            self.templates,
            self._slow_start,
            self._changes,
            self._listeners,
            self._refresh,
        )
        self._watches: dict[int, Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        for url in settings.replicas:
            self.add(url)

    # Membership

    def add(self, url: str, models: Sequence[str] = ()) -> Replica:
        """Let a replica in; it is watched at once when the fleet runs.

        models: what it serves, where that is known; otherwise its /v1/models is asked.
        Raises ValueError when the URL is unusable or its replica is in the fleet already.
        """
        settings = self.settings
        address = parse_address(url)
        for other in self.replicas:
            if other is not None and other.name == address.name:
                raise ValueError(f"replica {url!r} is in the fleet already, as {other.url!r}")
        now = self._clock()
        slot = self._free_slot()
        load = Load(prefill_rate=settings.prefill_rate, kv_capacity=float(settings.kv_cache_tokens))
        replica = Replica(
            slot=slot,
            address=address,
            load=load,
            breaker=Breaker(settings.breaker_failures, settings.breaker_cooldown),
            health=Health(settings.health_interval, settings.unhealthy_after, now),
            kv_tokens=settings.kv_cache_tokens or settings.kv_cache_guess,
            kv_tokens_known=settings.kv_cache_tokens > 0,
        )
        if slot == len(self.replicas):
            self.replicas.append(replica)
            self.loads.append(load)
        else:
            self.replicas[slot] = replica
            self.loads[slot] = load
        self._catalog.join(slot)
        self.pace.size += 1
        for listener in self._listeners:
            listener.on_added(replica)
        if models:
            self.set_models(replica, models)
        if self._ticking is not None:
            self._watch(replica, 0.0)
        self._changes.notify()
        return replica

    def remove(self, url: str) -> Replica:
        """Let a replica go at once, whatever is in flight on it.

        Raises KeyError if it is not in the fleet.
        """
        replica = self.find(url)
        slot = replica.slot
        self.usable &= ~replica.bit
        self.half_open &= ~replica.bit
        self._findings.untried &= ~replica.bit
        self._catalog.leave(slot)
        self.pace.size -= 1
        self._slow_start.drop(replica)
        replica.foreign.withdraw(replica.load)
        self.replicas[slot] = None
        watch = self._watches.pop(slot, None)
        if watch is not None:
            watch.cancel()
            task = asyncio.create_task(watch.closed())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        log.info("replica %s removed", replica.name)
        for listener in self._listeners:
            listener.on_removed(replica)
        self._changes.notify()
        return replica

    def drain(self, url: str) -> Replica:
        """Send a replica nothing new; it goes on with what it has.

        Raises KeyError if it is not in the fleet.
        """
        replica = self.find(url)
        if not replica.draining:
            replica.draining = True
            log.info("replica %s: draining, %d in flight", replica.name, replica.load.in_flight)
            self._refresh(replica)
        return replica

    def undrain(self, url: str) -> Replica:
        """Send a drained replica requests again. Raises KeyError if it is not in the fleet."""
        replica = self.find(url)
        if replica.draining:
            replica.draining = False
            log.info("replica %s: no longer draining", replica.name)
            self._refresh(replica)
        return replica

    def set_models(self, replica: Replica, models: Sequence[str]) -> None:
        """These are what it serves: its /v1/models is not asked any more."""
        replica.models_given = True
        self._findings.models_told(replica, tuple(map(named_card, models)))

    def reread_models(self, replica: Replica) -> None:
        """An adapter was loaded or unloaded there: read its models now rather than in a while."""
        watch = self._watches.get(replica.slot)
        if watch is not None:
            watch.reread_models()

    def find(self, url: str) -> Replica:
        """The member at this URL, however it is spelled. Raises KeyError if there is none."""
        name = parse_address(url).name
        for replica in self.replicas:
            if replica is not None and replica.name == name:
                return replica
        raise KeyError(f"no replica {url!r} in the fleet")

    def members(self) -> list[Replica]:
        """The replicas there are, by slot."""
        return [replica for replica in self.replicas if replica is not None]

    def names(self) -> dict[int, str]:
        """Slot -> stable name, as a policy's members() wants it."""
        return {replica.slot: replica.name for replica in self.members()}

    def listen(self, listener: FleetListener) -> None:
        """Tell it of every change from now on, and of the replicas there are already as added."""
        self._listeners.append(listener)
        for replica in self.members():
            listener.on_added(replica)

    def _free_slot(self) -> int:
        """A slot nobody has and on which nothing is in flight, or else a new one.

        The books of a replica that left may still be open: their Load must not become another's.
        """
        for slot, replica in enumerate(self.replicas):
            if replica is None and self.loads[slot].in_flight <= 0:
                return slot
        return len(self.replicas)

    # What the hot path asks

    def serving(self, model: str) -> int:
        """Mask of the replicas that serve a model, usable or not; 0 when nobody does.

        "", the model of a request that names none, is served by every one.
        """
        return self._catalog.serving(model)

    def last_resort(self, model: str) -> int:
        """Whom to try when none of a model's replicas is usable, sooner than to answer 503.

        First those that are healthy but for an open breaker, all of them and without trials: when
        every replica fails, keeping requests away helps none, and one trial at a time would make a
        partly failing fleet a dead one. Else those that were ready once and whose probes time out:
        a server with too much to do is slow to answer these too. Never one that refuses
        connections, answers that it is unwell, was never ready, or is draining.
        """
        open_breakers = slow = 0
        for slot in slots(self._catalog.serving(model)):
            replica = self.replicas[slot]
            if replica is None or replica.draining:
                continue
            if replica.health.state is HealthState.READY:
                open_breakers |= replica.bit
            elif replica.health.only_slow:
                slow |= replica.bit
        return open_breakers or slow

    def admitted(self, slot: int) -> None:
        """A request goes to a half-open replica: no other one may until its outcome is told."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.state is BreakerState.HALF_OPEN:
            replica.breaker.admit(self._clock())
            self._refresh(replica)

    def withdrawn(self, slot: int) -> None:
        """A request admitted ended without proving anything: its client left."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.state is BreakerState.HALF_OPEN:
            replica.breaker.withdraw()
            self._refresh(replica)

    def succeeded(self, slot: int, now: float) -> None:
        """A replica answered as it should. Nearly free unless it failed lately."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.troubled and replica.breaker.succeeded(now):
            log.info("replica %s: breaker closed, a trial succeeded", replica.name)
            self._refresh(replica)

    def failed(self, slot: int, reason: FaultReason, now: float) -> None:
        """A replica failed a request.

        connect: no connection was made (refused, unreachable, name unknown); takes it out at once.
        timeout: too slow, a connection that timed out among it. died: the connection broke.
        status: 5xx. These count in its breaker.
        """
        replica = self.replicas[slot]
        if replica is None:
            return
        faults = replica.faults
        setattr(faults, reason, getattr(faults, reason) + 1)
        if reason == "connect":
            if self._findings.bad(replica, NO_CONNECTION, now, at_once=True):
                watch = self._watches.get(slot)
                if watch is not None:
                    watch.hurry()
        elif replica.breaker.failed(now):
            log.warning(
                "replica %s: breaker open for %g s, last failure: %s",
                replica.name,
                replica.breaker.cooldown,
                reason,
            )
            self._refresh(replica)

    # Models

    @property
    def models_known(self) -> bool:
        """Whether any replica's models are known; until then an unknown model is a 503, not 404."""
        return self._catalog.known

    def all_models(self) -> tuple[ModelCard, ...]:
        """Every model and adapter any replica serves, for the gateway's own /v1/models."""
        return self._catalog.union

    def models_body(self) -> bytes:
        """The same as an OpenAI list object in JSON."""
        cards = b",".join(card.raw for card in self._catalog.union)
        return b'{"object":"list","data":[' + cards + b"]}"

    # Running

    async def start(self) -> None:
        """Begin to watch. Returns before anything is known: see wait_first_round."""
        if self._ticking is not None:
            raise RuntimeError("the fleet runs already")
        self._ticking = asyncio.create_task(self._tick_forever(), name="fleet tick")
        members = self.members()
        self._findings.untried = sum(replica.bit for replica in members if not replica.tried)
        for place, replica in enumerate(members):
            self._watch(replica, self.pace.offset(place))

    async def stop(self) -> None:
        """End every task and close every connection."""
        watches, self._watches = list(self._watches.values()), {}
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
            self._ticking = None
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*(watch.closed() for watch in watches), *self._ending)

    async def wait_first_round(self, within: float) -> bool:
        """Wait until each replica was tried once, well or not. False when time ran out before."""
        return await self.until(lambda: all(r.tried for r in self.members()), within)

    async def until(self, condition: Callable[[], bool], within: float) -> bool:
        """Wait until something is so, looking after each change. False when time ran out before."""
        return await self._changes.until(condition, within)

    async def changed(self) -> None:
        """Wait for the next change of any replica's state, models, metrics, load or membership."""
        await self._changes.changed()

    def tick(self, now: float) -> None:
        """Let time pass. The running fleet calls this itself; a simulation may in its own time."""
        stale = STALE_AFTER * self.pace.stretch(self.settings.metrics_interval)
        for replica in self.replicas:
            if replica is None:
                continue
            breaker = replica.breaker
            if breaker.state is not BreakerState.CLOSED and breaker.tick(now):
                log.info("replica %s: breaker half open, one trial may go", replica.name)
                self._refresh(replica)
            if replica.foreign.requests and now - replica.engine_at > stale:
                log.debug("replica %s: metrics are stale", replica.name)
                replica.foreign.withdraw(replica.load)
                self._changes.notify()
        if self._slow_start.tick(now):
            self._changes.notify()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self.tick(self._clock())

    def _watch(self, replica: Replica, delay: float) -> None:
        reader = Reader(replica.url, self.settings.api_key, self.tls)
        watch = Watch(replica, reader, self._findings, self.templates, self.pace, self.settings)
        self._watches[replica.slot] = watch
        watch.start(delay)

    def _refresh(self, replica: Replica) -> None:
        """Put a replica's bits where its state says."""
        bit = replica.bit
        breaker = replica.breaker
        usable = (
            replica.health.state is HealthState.READY and not replica.draining and breaker.passes
        )
        trial = usable and breaker.state is BreakerState.HALF_OPEN
        self.usable = self.usable | bit if usable else self.usable & ~bit
        self.half_open = self.half_open | bit if trial else self.half_open & ~bit
        self._changes.notify()
