"""Finding every replica's event sources and subscribing to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from router.config import Settings
from router.fleet.health import HealthState
from router.fleet.reader import Reader, ReadError
from router.fleet.replica import Replica
from router.kv_events.decode import Batch
from router.kv_events.sequencer import EventSequencer
from router.kv_events.socket import Subscription
from router.kv_events.sources import LONGEST_ANSWER, Source, parse_sources, sources_of
from router.kv_events.token_index import TokenIndex

if TYPE_CHECKING:
    import ssl

    import zmq

log = logging.getLogger(__name__)

RETRY_INTERVAL_S = 10.0
"""Seconds until a replica that reported no sources is asked again."""
ASK_TIMEOUT_S = 2.0
NOT_KNOWN = "its event sources are not known yet"


class EventSubscriptions:
    """One endpoint's subscriptions, one for each of its ranks. `silent` says why there are none;
    empty when there are."""

    def __init__(
        self,
        replica: Replica,
        index: TokenIndex,
        settings: Settings,
        context: zmq.Context[Any],
        changed: Callable[[int], None],
    ) -> None:
        self.replica = replica
        self.silent = NOT_KNOWN
        self.subscriptions: list[Subscription] = []
        self._index = index
        self._settings = settings
        self._context = context
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._next_try = 0.0

    def sequencers(self) -> list[EventSequencer]:
        """The sequencer of each rank; empty when there are no subscriptions."""
        return [subscription.sequencer for subscription in self.subscriptions]

    def sequencer(self, rank: int) -> EventSequencer | None:
        """The sequencer of one rank; None when it has no subscription."""
        return self.subscriptions[rank].sequencer if rank < len(self.subscriptions) else None

    def tick(self, tls: ssl.SSLContext) -> None:
        """Ask replicas without known sources for them. Call this regularly."""
        if self.subscriptions or (self._task is not None and not self._task.done()):
            return
        if monotonic() < self._next_try or self.replica.health.state is not HealthState.READY:
            return
        self._next_try = monotonic() + RETRY_INTERVAL_S
        self._task = asyncio.get_running_loop().create_task(self._find(tls))

    def close(self) -> None:
        """End all subscriptions and the tasks that look for sources."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        for subscription in self.subscriptions:
            subscription.close()
        self.subscriptions = []

    def begin_anew(self) -> None:
        """Look for a replica's sources again, because its ranks have changed."""
        self.close()
        self.silent = NOT_KNOWN
        self._next_try = 0.0
        for rank in self.replica.ranks:
            self._changed(rank.slot)

    async def _find(self, tls: ssl.SSLContext) -> None:
        replica, settings = self.replica, self._settings
        if not replica.kind.exact:
            self._fail(
                f"exact mode is for vLLM, and this is {replica.kind.title}: its KV events do not "
                "say all that its blocks' names cover, or it renders prompts in another way"
            )
            return
        if settings.exact_events:
            sources = sources_of(
                settings.exact_events,
                settings.exact_replay,
                settings.exact_topic,
                max(settings.exact_ranks, len(replica.ranks)),
                replica.host,
            )
        else:
            reader = Reader(replica.url, settings.replica_api_key, tls)
            try:
                answer = await reader.get("/kv_event_sources", LONGEST_ANSWER, ASK_TIMEOUT_S)
                if answer.status != 200:
                    raise ValueError(
                        f"/kv_event_sources answers {answer.status}: an older engine? Then set "
                        "exact_events and exact_replay"
                    )
                sources = parse_sources(answer.body, replica.host)
                if not sources:
                    raise ValueError(
                        "KV events are off in this engine: --kv-events-config "
                        '\'{"enable_kv_cache_events":true,"publisher":"zmq",'
                        '"replay_endpoint":"tcp://*:5558"}\''
                    )
            except (ReadError, ValueError) as error:
                self._fail(str(error))
                return
            finally:
                await reader.close()
        self._subscribe(sources)

    def _subscribe(self, sources: list[Source]) -> None:
        import zmq

        ranks = self.replica.ranks
        if len(sources) != len(ranks):
            self._fail(
                f"it has events of {len(sources)} data-parallel ranks, and metrics of {len(ranks)}"
            )
            return
        # As engines do, ranks are told apart by their place among those of their port.
        for source, rank in zip(sources, ranks, strict=True):
            handler = _IndexHandler(rank.slot, self._index, self._changed)
            sequencer = EventSequencer(f"replica {rank.name}", handler)
            subscription = Subscription(source, self._context, sequencer)
            try:
                subscription.open()
            except zmq.ZMQError as error:
                for other in self.subscriptions:
                    other.close()
                self.subscriptions = []
                self._fail(f"cannot subscribe to {source.endpoint}: {error}")
                return
            self.subscriptions.append(subscription)
        self.silent = ""
        log.info(
            "replica %s: subscribed to KV events at %s",
            self.replica.name,
            ", ".join(source.endpoint for source in sources),
        )

    def _fail(self, why: str) -> None:
        if why != self.silent:
            log.warning("replica %s: no KV events: %s", self.replica.name, why)
        self.silent = why


class _IndexHandler:
    """Applies a rank's batches to the token index."""

    def __init__(self, slot: int, index: TokenIndex, changed: Callable[[int], None]) -> None:
        self._slot = slot
        self._index = index
        self._changed = changed

    def apply(self, batch: Batch) -> None:
        self._index.apply(self._slot, batch)

    def empty(self, *, complete: bool) -> None:
        self._index.empty(self._slot, complete=complete)

    def current(self) -> None:
        self._changed(self._slot)
