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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from router.config import Settings
from router.config.address import parse_address
from router.fleet.breaker import Breaker, BreakerState
from router.fleet.change_notifier import ChangeNotifier
from router.fleet.health import Health, HealthState
from router.fleet.listener import FleetListener
from router.fleet.look import REFRESH_INTERVAL_S, ModelRefresh
from router.fleet.models import Catalog, Levels, ModelCard, named_card
from router.fleet.poll_rate import PollRate
from router.fleet.polling import ReplicaPoller
from router.fleet.reader import Failure, Reader, ReadError, tls_context
from router.fleet.replica import Replica
from router.fleet.replica_updater import ReplicaUpdater
from router.fleet.roles import Roles
from router.fleet.slow_start import SlowStart
from router.fleet.templates import Templates
from router.types import PREFILL_RATE_GUESS, Load, Role, slots

log = logging.getLogger(__name__)

FaultReason = Literal["connect", "timeout", "silent", "died", "status", "engine"]

TICK_INTERVAL_S = 0.1
"""Seconds between two looks at what only time changes: cooldowns, slow starts, stale metrics."""
STALE_AFTER_INTERVALS = 3
"""Metrics intervals after which a reading is not used any more."""
NO_CONNECTION = ReadError("live traffic could not connect", Failure.REFUSED)


class Fleet:
    """Membership, masks, passive and active health.

    Raises ValueError for a URL or a CA file it cannot use, with its name and the reason.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.replicas: list[Replica | None] = []
        self.loads: list[Load] = []
        self.usable = 0
        """Mask of the replicas that may be sent requests: ready, breaker not open, neither draining
        nor sleeping nor paused."""
        self.half_open = 0
        """Those of them whose breaker admits one trial: call admitted() when one is chosen."""
        self._clock = clock
        self._catalog = Catalog()
        self.serving = self._catalog.serving
        """Mask of the replicas that serve a model to clients, usable or not; 0 when nobody does.
        "", the model of a request that names none, is served by every one."""
        self._roles = Roles()
        self.lengths: Mapping[str, Levels] = self._catalog.lengths
        """Of the models whose replicas differ in max_model_len: see fitting."""
        self.templates = Templates()
        """What is known of each model's chat template."""
        self._listeners: list[FleetListener] = []
        self._notifier = ChangeNotifier()
        self.tls = tls_context(settings)
        """What https replicas are connected to with."""
        self.poll_rate = PollRate()
        """How often each replica is read."""
        self._slow_start = SlowStart(settings.slow_start)
        self._updater = ReplicaUpdater(
            settings,
            clock,
            self._catalog,
            self.templates,
            self._slow_start,
            self._notifier,
            self._listeners,
            self._refresh,
            self._set_ranks,
        )
        self._look = ModelRefresh(
            self._read_models, lambda: self.poll_rate.stretch(REFRESH_INTERVAL_S)
        )
        self._endpoints: dict[str, Replica] = {}
        """By name."""
        self._by_engine: dict[str, int] | None = None
        """Mask of the replicas of each engine, "" for those not known; None: to be made anew."""
        self._vacant: set[int] = set()
        """Slots of replicas that left."""
        self._watches: dict[int, ReplicaPoller] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        for url in settings.engines:
            self.add(url)

    # Membership

    def add(self, url: str, models: Sequence[str] = (), role: Role | None = None) -> Replica:
        """Let a replica in; it is watched at once when the fleet runs.

        models: what it serves, where that is known; otherwise its /v1/models is asked.
        role: as the settings list it where none is given.
        Raises ValueError when the URL is unusable or its replica is in the fleet already.
        """
        settings = self.settings
        address = parse_address(url)
        other = self._endpoints.get(address.name)
        if other is not None:
            raise ValueError(f"replica {url!r} is in the fleet already, as {other.url!r}")
        replica = Replica(
            slot=self._free_slot(),
            address=address,
            load=Load(
                prefill_rate=float(settings.prefill_rate) or PREFILL_RATE_GUESS,
                kv_capacity=float(settings.kv_cache_tokens),
            ),
            breaker=Breaker(settings.breaker_failures, settings.breaker_cooldown),
            health=Health(settings.health_interval, settings.unhealthy_after, self._clock()),
            kv_tokens=settings.kv_cache_tokens or settings.kv_cache_guess,
            kv_tokens_known=settings.kv_cache_tokens > 0,
            offload_tokens=settings.kv_offload_tokens,
        )
        replica.role = role or settings.role_of(replica.url)
        self._endpoints[replica.name] = replica
        self._catalog.join(replica.slot)
        self.poll_rate.size += 1
        self._join(replica)
        if models:
            self.set_models(replica, models)
        if self._ticking is not None:
            self._watch(replica, 0.0)
        self._notifier.notify()
        return replica

    def remove(self, url: str) -> Replica:
        """Let a replica go at once, whatever is in flight on it.

        Raises KeyError if it is not in the fleet.
        """
        replica = self.find(url)
        del self._endpoints[replica.name]
        self._updater.untried &= ~replica.bit
        self.poll_rate.size -= 1
        watch = self._watches.pop(replica.slot, None)
        if watch is not None:
            watch.cancel()
            task = asyncio.create_task(watch.closed())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        log.info("replica %s removed", replica.name)
        for rank in reversed(replica.ranks):
            self._leave(rank)
        self._notifier.notify()
        return replica

    def _join(self, replica: Replica) -> None:
        slot = replica.slot
        if slot == len(self.replicas):
            self.replicas.append(replica)
            self.loads.append(replica.load)
        else:
            self.replicas[slot] = replica
            self.loads[slot] = replica.load
            self._vacant.discard(slot)
        self._roles.set(replica, replica.role)
        self._tell_serving()
        for listener in self._listeners:
            listener.on_added(replica)

    def _leave(self, replica: Replica) -> None:
        self._by_engine = None
        self.usable &= ~replica.bit
        self.half_open &= ~replica.bit
        self._roles.drop(replica)
        self._catalog.leave(replica.slot)
        self._slow_start.drop(replica)
        replica.external.withdraw(replica.load)
        replica.load.left = True
        self.replicas[replica.slot] = None
        self._vacant.add(replica.slot)
        for listener in self._listeners:
            listener.on_removed(replica)

    def _set_ranks(self, first: Replica, count: int) -> None:
        """Have one replica for each of the `count` engines that metrics show behind one port."""
        ranks = first.ranks
        if len(ranks) == count:
            return
        log.info("replica %s: has %d data-parallel ranks", first.name, count)
        while len(ranks) > count:
            self._leave(ranks.pop())
        for rank in range(len(ranks), count):
            slot = self._free_slot()
            new = Replica(
                slot=slot,
                address=first.address,
                load=Load(
                    prefill_rate=first.load.prefill_rate,
                    kv_capacity=first.load.kv_capacity,
                ),
                breaker=first.breaker,
                health=first.health,
                kv_tokens=first.kv_tokens,
                kv_tokens_known=first.kv_tokens_known,
                offload_tokens=first.offload_tokens,
                block_tokens=first.block_tokens,
                ranks=ranks,
                rank=rank,
                models=first.models,
                models_read=first.models_read,
                models_given=first.models_given,
                any_model=first.any_model,
                draining=first.draining,
                asleep=first.asleep,
                paused=first.paused,
                by_discovery=first.by_discovery,
                kind=first.kind,
                role=first.role,
                tried=first.tried,
            )
            ranks.append(new)
            self._catalog.join_as(slot, first.slot)
            self._join(new)
        for each in ranks:
            each.bits = sum(one.bit for one in ranks)
            each.rank_header = b"x-data-parallel-rank: %d\r\n" % each.rank if count > 1 else b""
        self._refresh(first)

    def drain(self, url: str) -> Replica:
        """Send a replica nothing new; it goes on with what it has.

        Raises KeyError if it is not in the fleet.
        """
        replica = self.find(url)
        if not replica.draining:
            in_flight = sum(rank.load.in_flight for rank in replica.ranks)
            log.info("replica %s: draining, %d in flight", replica.name, in_flight)
            self._set_draining(replica, True)
        return replica

    def undrain(self, url: str) -> Replica:
        """Send a drained replica requests again. Raises KeyError if it is not in the fleet."""
        replica = self.find(url)
        if replica.draining:
            log.info("replica %s: no longer draining", replica.name)
            self._set_draining(replica, False)
        return replica

    def _set_draining(self, replica: Replica, draining: bool) -> None:
        for rank in replica.ranks:
            rank.draining = draining
        self._refresh(replica)

    def set_models(self, replica: Replica, models: Sequence[str]) -> None:
        """Set what a replica serves. Its /v1/models is not read any more."""
        for rank in replica.ranks:
            rank.models_given = True
        self._updater.models_told(replica, tuple(map(named_card, models)))

    def set_role(self, replica: Replica, role: Role) -> None:
        """Set what a replica is for. Requests that are there already run to their end."""
        if replica.role == role:
            return
        log.info("replica %s: its role is now %s", replica.name, role)
        for rank in replica.ranks:
            self._roles.set(rank, role)
        self._tell_serving()
        for listener in self._listeners:
            for rank in replica.ranks:
                listener.on_role(rank)
        self._notifier.notify()

    def _tell_serving(self) -> None:
        """Requests ask the catalog itself while no replica is for prefill alone."""
        self.serving = self._decoding if self._roles.prefill_only else self._catalog.serving

    def reread_models(self, replica: Replica) -> None:
        """An adapter was loaded or unloaded there: read its models now rather than in a while."""
        watch = self._watches.get(replica.slot)
        if watch is not None:
            watch.reread_models()

    def had_adapter(self, replica: Replica, model: str, *, had: bool) -> None:
        """It was asked for a model that it had not listed, or no longer has: whether it had it.
        What it lists is read now rather than in a while."""
        if had:
            for rank in replica.ranks:
                self._catalog.answered(rank.slot, model)
        else:
            self._catalog.refuses(replica.bits, model)
        self.reread_models(replica)

    @property
    def adapters(self) -> Mapping[str, str]:
        """LoRA adapter -> its base model; kept up to date."""
        return self._catalog.parents

    def reread_rest(self, replica: Replica) -> None:
        """It was put to sleep, woken, paused or resumed: find out now rather than in a while."""
        watch = self._watches.get(replica.slot)
        if watch is not None:
            watch.reread_rest()

    def find(self, url: str) -> Replica:
        """The member at this URL, however it is spelled. Raises KeyError if there is none."""
        replica = self._endpoints.get(parse_address(url).name)
        if replica is None:
            raise KeyError(f"no replica {url!r} in the fleet")
        return replica

    def members(self) -> list[Replica]:
        """The replicas there are, by slot: of an endpoint with several ranks, each."""
        return [replica for replica in self.replicas if replica is not None]

    def endpoints(self) -> list[Replica]:
        """The replicas there are, of an endpoint with several ranks the first."""
        return [replica for replica in self.members() if not replica.rank]

    def names(self) -> dict[int, str]:
        """The stable name of each slot, in the form that a policy's members() takes."""
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
        free = (slot for slot in self._vacant if self.loads[slot].in_flight <= 0)
        return min(free, default=len(self.replicas))

    # What the hot path asks

    def last_resort(self, model: str) -> int:
        """Whom to try when none of a model's replicas is usable, sooner than to answer 503.

        First those that are healthy but for an open breaker, all of them and without trials: when
        every replica fails, keeping requests away helps none, and one trial at a time would make a
        partly failing fleet a dead one. Else those that were ready once and whose probes time out:
        a server with too much to do is slow to answer these too. Never one that refuses
        connections, answers that it is unwell, was never ready, is draining, sleeps or is paused.
        """
        open_breakers = slow = 0
        for slot in slots(self.serving(model)):
            replica = self.replicas[slot]
            if replica is None or replica.draining or replica.resting:
                continue
            if replica.health.state is HealthState.READY:
                open_breakers |= replica.bit
            elif replica.health.only_slow:
                slow |= replica.bit
        return open_breakers or slow

    def admitted(self, slot: int) -> None:
        """A request goes to a half-open replica. No other one may go there until it has ended."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.state is BreakerState.HALF_OPEN:
            replica.breaker.admit(self._clock())
            self._refresh(replica)

    def withdrawn(self, slot: int) -> None:
        """An admitted request ended without proving anything, such as when its client left."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.state is BreakerState.HALF_OPEN:
            replica.breaker.withdraw()
            self._refresh(replica)

    def succeeded(self, slot: int, now: float) -> None:
        """A replica answered as it should. This costs next to nothing unless it failed lately."""
        replica = self.replicas[slot]
        if replica is not None and replica.breaker.troubled and replica.breaker.succeeded(now):
            log.info("replica %s: breaker closed, a trial succeeded", replica.name)
            self._refresh(replica)

    def failed(self, slot: int, reason: FaultReason, now: float) -> None:
        """A replica failed a request.

        connect: no connection was made (refused, unreachable, name unknown); takes it out at once.
        engine: the engine behind its server is dead; takes it out at once. timeout: a connection
        timed out. died: the connection broke. status: 5xx. These count in its breaker. silent:
        nothing came for too long; counts there too, unless its health says that it lives.
        """
        replica = self.replicas[slot]
        if replica is None:
            return
        faults = replica.faults
        setattr(faults, reason, getattr(faults, reason) + 1)
        if reason == "connect":
            if self._updater.bad(replica, NO_CONNECTION, now, at_once=True):
                self._hurry(slot)
            return
        if reason == "silent" and replica.health.well:
            # A slow replica is not dead. The next probe finds out whether it is.
            self._hurry(slot)
            self.withdrawn(slot)
            return
        if reason == "engine":
            self._hurry(slot)
        if replica.breaker.failed(now, at_once=reason == "engine"):
            log.warning(
                "replica %s: breaker open for %g s, last failure: %s",
                replica.name,
                replica.breaker.cooldown,
                reason,
            )
            self._refresh(replica)

    def works(self, slot: int) -> bool:
        """Whether a replica says itself that it is at work: its health is good, and by its engine's
        metrics, which are fresh, requests run."""
        replica = self.replicas[slot]
        if replica is None or not replica.health.well or replica.engine is None:
            return False
        age = self._clock() - replica.engine_at
        fresh = age <= STALE_AFTER_INTERVALS * self.poll_rate.stretch(
            self.settings.metrics_interval
        )
        return fresh and (replica.engine.running or 0) > 0

    def away(self, slot: int) -> float:
        """Seconds for which a replica's health has been bad; 0 while it is good."""
        replica = self.replicas[slot]
        if replica is None or replica.health.state is not HealthState.UNHEALTHY:
            return 0.0
        return self._clock() - replica.health.since

    # Models

    def _decoding(self, model: str) -> int:
        return self._catalog.serving(model) & ~self._roles.prefill_only

    def may_prefill(self, model: str) -> int:
        """Mask of the replicas that may prefill a prompt for others now."""
        return self._catalog.serving(model) & self._roles.prefilling & self.usable

    def may_come(self, model: str) -> bool:
        """Whether a model nobody serves just now may be served in a while: it is expected, its last
        replica left, all that have it only prefill, or a replica has yet to tell what it serves."""
        return self.expects(model) or any(not replica.models_read for replica in self.members())

    def expects(self, model: str) -> bool:
        """Whether it is expected by the settings, its last replica left, or those that have it do
        not answer clients: there is such a model. An adapter whose base model is served is not: its
        engines would have it."""
        return model in self.settings.expected_models or (
            (self._catalog.away(model) or bool(self._catalog.serving(model)))
            and not self.hosts(model)
        )

    @property
    def answering(self) -> int:
        """Mask of the replicas that are drained and well: what they hold can be had from them."""
        return sum(
            replica.bit
            for replica in self.members()
            if replica.draining
            and not replica.resting
            and replica.health.state is HealthState.READY
        )

    def hosts(self, model: str) -> int:
        """Mask of the replicas of a LoRA adapter's base model; 0 for what was no adapter."""
        parent = self._catalog.parent(model)
        return self.serving(parent) if parent else 0

    def alike(self, mask: int) -> int:
        """Mask of the replicas that serve the same base models as some of these."""
        return self._catalog.alike(mask)

    def fitting(self, model: str, eligible: int, tokens: float) -> int:
        """Those of the eligible replicas that take so many tokens; else those that take most."""
        best = eligible
        for length, mask in self._catalog.lengths.get(model, ()):
            if eligible & mask:
                best = eligible & mask
                if tokens <= length:
                    break
        return best

    def of_engine(self, engine: str, eligible: int) -> int:
        """Those of the eligible replicas that are this engine, or may be; all of them where the
        fleet has none of it, so that they say themselves that they do not have a path."""
        masks = self._by_engine
        if masks is None:
            masks = self._by_engine = {}
            for replica in self.members():
                name = replica.kind.name
                masks[name] = masks.get(name, 0) | replica.bit
        own = masks.get(engine, 0)
        return eligible & (own | masks.get("", 0)) if own else eligible

    def longer(self, model: str, slot: int) -> int:
        """Mask of the replicas of a model that take more tokens than this one."""
        for _, mask in self._catalog.lengths.get(model, ()):
            if not mask >> slot & 1:
                return mask
        return 0

    async def look(self, model: str, tried: int) -> None:
        """Ask the engines what they serve. Returns when one that was not tried serves the model, or
        all were asked."""
        look = self._look.join()
        within = 2 * (self.poll_rate.stretch(REFRESH_INTERVAL_S) + self.settings.health_timeout)
        await self.until(
            lambda: look.done() or bool(self.serving(model) & self.usable & ~tried), within
        )

    async def _read_models(self) -> None:
        await asyncio.gather(
            *(
                watch.read_models()
                for slot, watch in self._watches.items()
                if (replica := self.replicas[slot]) is not None
                and replica.health.state is HealthState.READY
            )
        )
        # The look is done when this returns: wake those who wait for it after that.
        asyncio.get_running_loop().call_soon(self._notifier.notify)

    @property
    def guarded(self) -> bool:
        """Whether engines ask for a key before they tell their models."""
        return bool(self.settings.replica_api_key or self._catalog.untold)

    @property
    def models_known(self) -> bool:
        """Whether any replica's models are known; until then an unknown model is a 503, not 404."""
        return self._catalog.known

    def all_models(self) -> tuple[ModelCard, ...]:
        """Every model and adapter any replica serves, for the gateway's own /v1/models."""
        return self._catalog.union

    def model_names(self) -> str:
        """The names of the models served, for messages."""
        return ", ".join(card.id for card in self._catalog.union) or "none"

    @property
    def mixed(self) -> bool:
        """Whether there is no model that all replicas serve whose models are known."""
        return self._catalog.mixed

    def cards(self, slot: int) -> tuple[ModelCard, ...]:
        """What one replica serves, by its own /v1/models."""
        return self._catalog.cards(slot)

    def models_body(self) -> bytes:
        """The models served, as an OpenAI list object in JSON."""
        cards = b",".join(card.raw for card in self._catalog.union)
        return b'{"object":"list","data":[' + cards + b"]}"

    # Running

    async def start(self) -> None:
        """Start the tasks that watch replicas.

        Returns before any has answered: see wait_first_round.
        """
        if self._ticking is not None:
            raise RuntimeError("the fleet runs already")
        self._ticking = asyncio.create_task(self._tick_forever(), name="fleet tick")
        endpoints = self.endpoints()
        self._updater.untried = sum(replica.bit for replica in endpoints if not replica.tried)
        for place, replica in enumerate(endpoints):
            self._watch(replica, self.poll_rate.offset(place))

    async def stop(self) -> None:
        """Cancel every task and close every connection."""
        self._look.cancel()
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
        return await self._notifier.until(condition, within)

    async def changed(self) -> None:
        """Wait for the next change of any replica's state, models, metrics, load or membership."""
        await self._notifier.changed()

    def tick(self, now: float) -> None:
        """Apply what only time changes. The running fleet calls this itself; a simulation calls it
        in its own time."""
        stale = STALE_AFTER_INTERVALS * self.poll_rate.stretch(self.settings.metrics_interval)
        for replica in self.replicas:
            if replica is None:
                continue
            breaker = replica.breaker
            if breaker.state is not BreakerState.CLOSED and breaker.tick(now):
                log.info("replica %s: breaker half open, one trial may go", replica.name)
                self._refresh(replica)
            if replica.external.requests and now - replica.engine_at > stale:
                log.debug("replica %s: metrics are stale", replica.name)
                replica.external.withdraw(replica.load)
                self._notifier.notify()
        if self._slow_start.tick(now):
            self._notifier.notify()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_INTERVAL_S)
            self.tick(self._clock())

    def _watch(self, replica: Replica, delay: float) -> None:
        reader = Reader(replica.url, self.settings.replica_api_key, self.tls)
        watch = ReplicaPoller(
            replica, reader, self._updater, self.templates, self.poll_rate, self.settings
        )
        self._watches[replica.slot] = watch
        watch.start(delay)

    def _hurry(self, slot: int) -> None:
        """Probe a replica's health soon, out of turn."""
        replica = self.replicas[slot]
        watch = self._watches.get(replica.ranks[0].slot) if replica is not None else None
        if watch is not None:
            watch.hurry()

    def _refresh(self, replica: Replica) -> None:
        """Set the mask bits of a replica and of its other ranks by its state."""
        self._by_engine = None
        bits = replica.bits
        breaker = replica.breaker
        usable = (
            replica.health.state is HealthState.READY
            and not replica.draining
            and not replica.resting
            and breaker.passes
        )
        trial = usable and breaker.state is BreakerState.HALF_OPEN
        self.usable = self.usable | bits if usable else self.usable & ~bits
        self.half_open = self.half_open | bits if trial else self.half_open & ~bits
        self._notifier.notify()
