"""What the watches find out, and what it means for a replica. Beside the hot path."""

from __future__ import annotations

import logging
from collections.abc import Callable

from router.fleet.change_notifier import Changes
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.health import HealthState
from router.fleet.listener import FleetListener
from router.fleet.models import Catalog, ModelCard
from router.fleet.reader import ReadError
from router.fleet.replica import Replica
from router.fleet.restarts import restarted
from router.fleet.settings import FleetSettings
from router.fleet.slow_start import SlowStart
from router.fleet.templates import Templates

log = logging.getLogger(__name__)


class Findings:
    """Turns readings into health, models, sizes and foreign load. It is the watches' Keeper."""

    def __init__(
        self,
        settings: FleetSettings,
        clock: Callable[[], float],
        catalog: Catalog,
        templates: Templates,
        slow_start: SlowStart,
        changes: Changes,
        listeners: list[FleetListener],
        refresh: Callable[[Replica], None],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._catalog = catalog
        self._templates = templates
        self._slow_start = slow_start
        self._changes = changes
        self._listeners = listeners
        self._refresh = refresh
        self._said: set[str] = set()
        self.untried = 0
        """Mask of the replicas of the first round that were not tried yet. Only these start at
        their full share: with nobody else to take the load, slowness would help nobody."""

    # Health

    def probed(self, replica: Replica) -> None:
        """It is well."""
        now = self._clock()
        health = replica.health
        if health.state is HealthState.READY:
            health.good(now)
            return
        if health.was_refused:
            # no metrics came with it that could have told better
            self._emptied(replica, "it refused connections")
        health.good(now)
        replica.breaker.reset()
        if not self.untried & replica.bit:
            self._slow_start.begin(replica, now)
        log.info("replica %s: ready", replica.name)
        self._refresh(replica)
        self._was_tried(replica)

    def probe_failed(self, replica: Replica, failure: ReadError) -> None:
        """It is unwell, or cannot be asked."""
        self.bad(replica, failure, self._clock())
        self._was_tried(replica)

    def bad(self, replica: Replica, why: ReadError, now: float, at_once: bool = False) -> bool:
        """Count a failure. True if it made the replica unhealthy."""
        health = replica.health
        if not health.bad(why, now, at_once):
            return False
        if health.was_ready:
            log.warning("replica %s: unhealthy: %s", replica.name, why)
        else:
            log.warning("replica %s: not ready, will be tried again: %s", replica.name, why)
        replica.foreign.withdraw(replica.load)
        self._slow_start.drop(replica)
        self._refresh(replica)
        return True

    def _was_tried(self, replica: Replica) -> None:
        if not replica.tried:
            replica.tried = True
            self.untried &= ~replica.bit
            self._changes.notify()

    # Models

    def models_told(self, replica: Replica, cards: tuple[ModelCard, ...]) -> None:
        """The models it serves, now."""
        names = tuple(card.id for card in cards)
        known = replica.models_read and not replica.any_model and names == replica.models
        if known and replica.health.state is HealthState.READY:
            return
        replica.models = names
        replica.models_read = True
        replica.any_model = False
        if not known:
            log.info("replica %s: serves %s", replica.name, ", ".join(names) or "no model")
        self._catalog.tell(replica.slot, cards)
        self._templates.served(self._catalog.union)
        self._changes.notify()

    def models_untold(self, replica: Replica, status: int) -> None:
        """Its models cannot be known: it is taken to serve every one."""
        if replica.any_model:
            return
        replica.models = ()
        replica.models_read = True
        replica.any_model = True
        self._say_once(
            f"models {status}",
            f"replica {replica.name}: /v1/models answered {status}; such a replica is taken to "
            "serve any model. If it wants a key, set replica_api_key",
        )
        self._catalog.tell_any(replica.slot)
        self._changes.notify()

    # Metrics

    def metrics_told(self, replica: Replica, metrics: EngineMetrics, most_own: int) -> None:
        """A reading, with the most requests of ours that were in flight while it was taken."""
        health = replica.health
        why = restarted(replica.engine, metrics, health.was_refused)
        if why:
            self._emptied(replica, why)
        health.settled()
        replica.engine = metrics
        replica.engine_at = self._clock()
        replica.engine_missing = ""
        if metrics.prefix_caching is False:
            self._say_once(
                f"caching {replica.name}",
                f"replica {replica.name}: prefix caching is off in this engine; routing by prefix "
                "gains nothing there (--enable-prefix-caching)",
            )
        self._resize(replica, metrics.kv_tokens)
        if metrics.block_tokens is not None:
            replica.block_tokens = metrics.block_tokens
        if metrics.running is not None and metrics.waiting is not None:
            replica.foreign.observe(
                replica.load, metrics.running, metrics.waiting, most_own, metrics.uncached_each
            )
        self._changes.notify()

    def metrics_missing(self, replica: Replica, why: str) -> None:
        """It has no metrics."""
        if replica.engine_missing == why:
            return
        replica.engine_missing = why
        replica.foreign.withdraw(replica.load)
        self._say_once(
            f"metrics {why}",
            f"replica {replica.name}: {why}; without metrics its KV cache size is a guess "
            "(set kv_cache_tokens) and other clients' load is not seen",
        )
        self._changes.notify()

    def _resize(self, replica: Replica, tokens: int | None) -> None:
        if self._settings.kv_cache_tokens:
            return
        if tokens is None:
            self._say_once(
                "size",
                f"replica {replica.name}: its metrics do not tell the size of its KV cache; "
                f"{replica.kv_tokens} tokens are assumed (set kv_cache_tokens)",
            )
            return
        replica.kv_tokens_known = True
        replica.load.kv_capacity = float(tokens)
        if tokens != replica.kv_tokens:
            replica.kv_tokens = tokens
            log.info("replica %s: its KV cache holds %d tokens", replica.name, tokens)
            for listener in self._listeners:
                listener.on_resized(replica, tokens)

    def _emptied(self, replica: Replica, why: str) -> None:
        log.warning("replica %s: restarted, its cache is empty: %s", replica.name, why)
        replica.restarts += 1
        self._templates.restarted(replica.name)
        replica.engine = None
        replica.foreign.withdraw(replica.load)
        for listener in self._listeners:
            listener.on_emptied(replica)

    def _say_once(self, about: str, text: str) -> None:
        if about not in self._said:
            self._said.add(about)
            log.warning("%s", text)
