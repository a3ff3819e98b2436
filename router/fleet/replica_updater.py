"""Applies what the pollers read to a replica's state. It runs beside the hot path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import zip_longest

from router.config import Settings
from router.fleet.change_notifier import ChangeNotifier
from router.fleet.engine_metrics import EngineMetrics, after
from router.fleet.engines import EngineKind, kind_by_owners
from router.fleet.health import HealthState, OwnFleetError
from router.fleet.listener import FleetListener
from router.fleet.models import Catalog, ModelCard
from router.fleet.reader import Failure, ReadError
from router.fleet.replica import Replica
from router.fleet.restarts import restarted
from router.fleet.slow_start import SlowStart
from router.fleet.templates import Templates

log = logging.getLogger(__name__)

SHORTAGE_LOG_INTERVAL_S = 10.0
"""Seconds between two log lines about a resource that the router itself lacks."""


MIN_LOADED_TOKENS = 2048.0
"""Tokens loaded between two readings from which on they tell what a token takes."""
MOST_TOKEN_SECONDS = 0.1
"""No token takes longer to load: a counter that says so is wrong."""
TIER_SMOOTHING = 0.2
"""Weight of the latest reading's seconds a token among those before."""


def loading_seconds(before: EngineMetrics | None, now: EngineMetrics) -> float:
    """Seconds that a token took to come from CPU memory between two readings of an engine; 0 where
    they do not tell."""
    if before is None or now.load_seconds is None or before.load_seconds is None:
        return 0.0
    tokens = 0.0
    if now.token_bytes and now.load_bytes is not None and before.load_bytes is not None:
        tokens = (now.load_bytes - before.load_bytes) / now.token_bytes
    elif now.loaded is not None and before.loaded is not None:
        tokens = now.loaded - before.loaded
    seconds = now.load_seconds - before.load_seconds
    if tokens < MIN_LOADED_TOKENS or seconds <= 0.0:
        return 0.0
    each = seconds / tokens
    return each if each <= MOST_TOKEN_SECONDS else 0.0


class ReplicaUpdater:
    """The pollers' ReadingHandler: turns readings into health, models, cache sizes and external
    load."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        catalog: Catalog,
        templates: Templates,
        slow_start: SlowStart,
        changes: ChangeNotifier,
        listeners: list[FleetListener],
        refresh: Callable[[Replica], None],
        set_ranks: Callable[[Replica, int], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._catalog = catalog
        self._templates = templates
        self._slow_start = slow_start
        self._notifier = changes
        self._listeners = listeners
        self._refresh = refresh
        self._set_ranks = set_ranks
        self._said: set[str] = set()
        self._told_lack = float("-inf")
        self.untried = 0
        """Mask of the replicas of the first round that were not tried yet. Only these start at
        their full share: with nobody else to take the load, slowness would help nobody."""

    # Health

    def probed(self, replica: Replica) -> None:
        """A good probe: mark the replica ready, and start it slowly if it was not."""
        now = self._clock()
        health = replica.health
        if health.state is HealthState.READY:
            health.good(now)
            return
        if health.was_refused:
            # No metrics came with it, which would show a restart better.
            self._emptied(replica, "it refused connections")
        health.good(now)
        replica.breaker.reset()
        if not self.untried & replica.bit:
            for rank in replica.ranks:
                self._slow_start.begin(rank, now)
        log.info("replica %s: ready", replica.name)
        self._refresh(replica)
        self._was_tried(replica)

    def probe_failed(self, replica: Replica, failure: ReadError) -> None:
        """Note a probe that failed or found bad health."""
        if failure.failure is Failure.LOCAL:
            self._lacks(failure)
            return
        self.bad(replica, failure, self._clock())
        self._was_tried(replica)

    def bad(self, replica: Replica, why: ReadError, now: float, at_once: bool = False) -> bool:
        """Count a failed probe. True if it made the replica unhealthy."""
        health = replica.health
        before = health.reason
        if not health.bad(why, now, at_once):
            # It was away before this router listened itself, and told so: this says what to do.
            if isinstance(why, OwnFleetError) and health.reason != before:
                log.warning("replica %s: %s", replica.name, why)
            return False
        if health.was_ready:
            log.warning("replica %s: unhealthy: %s", replica.name, why)
        else:
            log.warning("replica %s: not ready, will be tried again: %s", replica.name, why)
        for rank in replica.ranks:
            rank.external.withdraw(rank.load)
            self._slow_start.drop(rank)
        self._refresh(replica)
        return True

    def _lacks(self, failure: ReadError) -> None:
        """Log that the router itself could not ask, so that every replica stays as it was."""
        now = self._clock()
        if now - self._told_lack >= SHORTAGE_LOG_INTERVAL_S:
            self._told_lack = now
            log.error("replicas cannot be probed, and stay as they were: %s", failure)

    def _was_tried(self, replica: Replica) -> None:
        if not replica.tried:
            for rank in replica.ranks:
                rank.tried = True
            self.untried &= ~replica.bit
            self._notifier.notify()

    # Engine and models

    def kind_told(self, replica: Replica, kind: EngineKind) -> None:
        """Its models or its metrics are those of this engine."""
        if replica.kind is kind:
            return
        log.info("replica %s: is %s", replica.name, kind.title)
        for rank in replica.ranks:
            rank.kind = kind
            rank.reports_cached = False
        self._refresh(replica)

    def models_told(self, replica: Replica, cards: tuple[ModelCard, ...]) -> None:
        """Take over the list of models that the replica serves now."""
        kind = kind_by_owners(card.owned_by for card in cards)
        if kind is not None:
            self.kind_told(replica, kind)
        names = tuple(card.id for card in cards)
        known = (
            replica.models_read
            and not replica.any_model
            and self._catalog.told(replica.slot) == tuple(card.told for card in cards)
        )
        if known and replica.health.state is HealthState.READY:
            return
        if not known:
            log.info("replica %s: serves %s", replica.name, ", ".join(names) or "no model")
        for rank in replica.ranks:
            rank.models = names
            rank.models_read = True
            rank.any_model = False
            self._catalog.tell(rank.slot, cards)
        self._adapters_told(replica.ranks)
        self._templates.served(self._catalog.union)
        self._notifier.notify()

    def models_untold(self, replica: Replica, status: int) -> None:
        """Take the replica to serve every model, because it refuses to list them."""
        if replica.any_model:
            return
        for rank in replica.ranks:
            rank.models = ()
            rank.models_read = True
            rank.any_model = True
            self._catalog.tell_any(rank.slot)
        self._adapters_told(replica.ranks)
        self._say_once(
            f"models {status}",
            f"replica {replica.name}: /v1/models answered {status}; such a replica is taken to "
            "serve any model. If it requires a key, set replica_api_key",
        )
        self._notifier.notify()

    # Metrics

    def metrics_told(
        self, replica: Replica, metrics: EngineMetrics, most_own: Sequence[int]
    ) -> None:
        """A reading, with the most requests of ours that were in flight on each rank while it was
        taken."""
        health = replica.health
        readings = metrics.ranks or (metrics,)
        for rank, reading in zip(replica.ranks, readings, strict=False):
            why = restarted(rank.engine, reading, health.was_refused)
            if why:
                self._emptied(replica, why)
                break
        health.settled()
        if metrics.prefix_caching is False:
            self._say_once(
                f"caching {replica.name}",
                f"replica {replica.name}: prefix caching is off in this engine; routing by prefix "
                f"gains nothing there: {replica.kind.caching_fix}",
            )
        self._set_ranks(replica, len(readings))
        now = self._clock()
        for rank, reading, own in zip_longest(replica.ranks, readings, most_own[: len(readings)]):
            self._rank_told(rank, reading, own or 0, now)
        if metrics.max_loras is not None:
            self._adapters_told(replica.ranks)
        self._notifier.notify()

    def _adapters_told(self, ranks: Sequence[Replica]) -> None:
        for listener in self._listeners:
            for rank in ranks:
                listener.on_adapters(rank)

    def _rank_told(self, rank: Replica, reading: EngineMetrics, most_own: int, now: float) -> None:
        seconds = loading_seconds(rank.engine, reading)
        if seconds:
            before = rank.load.tier_seconds
            rank.load.tier_seconds = (
                before + (seconds - before) * TIER_SMOOTHING if before else seconds
            )
        rank.engine = after(rank.engine, reading)
        rank.engine_at = now
        rank.engine_missing = ""
        self._resize(rank, reading)
        if reading.block_tokens is not None:
            rank.block_tokens = reading.block_tokens
        if reading.running is not None and reading.waiting is not None:
            rank.external.observe(
                rank.load, reading.running, reading.waiting, most_own, reading.uncached_each
            )

    def metrics_missing(self, replica: Replica, why: str) -> None:
        """Route without metrics to a replica that has none."""
        if replica.engine_missing == why:
            return
        for rank in replica.ranks:
            rank.engine_missing = why
            rank.external.withdraw(rank.load)
        self._say_once(
            f"metrics {why} {replica.kind.name}",
            f"replica {replica.name}: {why}; without metrics the size of its KV cache is not "
            f"known, and other clients' load is not seen: {replica.kind.metrics_fix}",
        )
        self._notifier.notify()

    # Sleeping and paused

    def rest_told(self, replica: Replica, asleep: bool | None, paused: bool | None) -> None:
        """Set whether it sleeps and whether it is paused; None leaves the value as it was."""
        rested = replica.resting
        for rank in replica.ranks:
            if asleep is not None:
                rank.asleep = asleep
            if paused is not None:
                rank.paused = paused
        if replica.resting == rested:
            if rested:
                self._notifier.notify()  # asleep now, and paused before, or the other way about
            return
        if not rested:
            word = "sleeps" if replica.asleep else "is paused"
            log.info("replica %s: %s, nothing is sent there", replica.name, word)
            # An engine drops its cache for sleep, and for a pause unless told to keep it.
            for rank in replica.ranks:
                for listener in self._listeners:
                    listener.on_emptied(rank)
        else:
            log.info("replica %s: no longer sleeping or paused", replica.name)
        self._refresh(replica)

    def _resize(self, replica: Replica, reading: EngineMetrics) -> None:
        settings = self._settings
        before = replica.remembered_tokens
        if not settings.kv_cache_tokens:
            tokens = reading.kv_tokens
            if tokens is not None:
                if not replica.kv_tokens_known or tokens != replica.kv_tokens:
                    log.info("replica %s: its KV cache holds %d tokens", replica.name, tokens)
                replica.kv_tokens_known = True
                replica.load.kv_capacity = float(tokens)
                replica.kv_tokens = tokens
            elif not replica.kv_tokens_known:
                self._say_once(
                    f"size {replica.name}",
                    f"replica {replica.name}: the size of its KV cache is not known: the engine's "
                    "metrics do not tell it. Until kv_cache_tokens is set, prompts are remembered "
                    f"as if there were room for {replica.kv_tokens} tokens (kv_cache_guess), and "
                    "how full it is does not count",
                )
        offload = settings.kv_offload_tokens or reading.offload_tokens or 0
        if offload != replica.offload_tokens:
            replica.offload_tokens = offload
            log.info("replica %s: %d tokens more fit behind its GPU", replica.name, offload)
        if replica.remembered_tokens != before:
            for listener in self._listeners:
                listener.on_resized(replica)

    def _emptied(self, replica: Replica, why: str) -> None:
        log.warning("replica %s: restarted, its cache is empty: %s", replica.name, why)
        self._templates.restarted(replica.name)
        for rank in replica.ranks:
            rank.restarts += 1
            rank.engine = None
            # Its tier may be another one now, and nothing is loaded from it yet.
            rank.load.tier_seconds = rank.load.loading_until = 0.0
            rank.external.withdraw(rank.load)
            for listener in self._listeners:
                listener.on_emptied(rank)

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            log.warning("%s", text)
