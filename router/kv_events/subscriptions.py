"""Finding every replica's event sources and subscribing to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from router.fleet.health import HealthState
from router.fleet.reader import Reader, ReadError
from router.fleet.replica import Replica
from router.kv_events.decode import Batch
from router.kv_events.sequencer import Feed
from router.kv_events.socket import Subscription
from router.kv_events.sources import LONGEST_ANSWER, Source, parse_sources, sources_of
from router.kv_events.token_index import TokenIndex

if TYPE_CHECKING:
    import ssl

    import zmq

log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""Until a replica that told no sources is asked again."""
ASK_SECONDS = 2.0


class ListenSettings(msgspec.Struct, frozen=True):
    """Where events are, when the engines are not asked."""

    events: str = ""
    """An endpoint with {host} in it, such as tcp://{host}:5557; empty asks each replica."""
    replay: str = ""
    topic: str = ""
    ranks: int = 1


class Listener:
    """One replica's subscriptions. `silent` says why there are none; empty when there are."""

    def __init__(
        self,
        replica: Replica,
        index: TokenIndex,
        settings: ListenSettings,
        context: zmq.Context[Any],
        changed: Callable[[int], None],
    ) -> None:
        self.replica = replica
        self.silent = "its event sources are not known yet"
        self.subscriptions: list[Subscription] = []
        self._index = index
        self._settings = settings
        self._context = context
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._next_try = 0.0

    @property
    def current(self) -> bool:
        """Every rank can be heard, and no batch of any is known to be missing."""
        return bool(self.subscriptions) and all(s.feed.current for s in self.subscriptions)

    def feeds(self) -> list[Feed]:
        """Of each rank."""
        return [subscription.feed for subscription in self.subscriptions]

    def tick(self, api_key: str, tls: ssl.SSLContext) -> None:
        """To be called now and then: looks for sources where there are none."""
        if self.subscriptions or (self._task is not None and not self._task.done()):
            return
        if monotonic() < self._next_try or self.replica.health.state is not HealthState.READY:
            return
        self._next_try = monotonic() + RETRY_SECONDS
        self._task = asyncio.get_running_loop().create_task(self._find(api_key, tls))

    def restarted(self) -> None:
        """The replica's engine restarted, with other sources perhaps."""
        for feed in self.feeds():
            feed.restarted()

    def close(self) -> None:
        """Subscribe to nothing any more."""
        if self._task is not None:
            self._task.cancel()
        for subscription in self.subscriptions:
            subscription.close()
        self.subscriptions = []

    async def _find(self, api_key: str, tls: ssl.SSLContext) -> None:
        replica, settings = self.replica, self._settings
        if settings.events:
            sources = sources_of(
                settings.events, settings.replay, settings.topic, settings.ranks, replica.host
            )
        else:
            reader = Reader(replica.url, api_key, tls)
            try:
                answer = await reader.get("/kv_event_sources", LONGEST_ANSWER, ASK_SECONDS)
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

        for source in sources:
            sink = _Sink(self, self.replica.slot, source.rank, self._index, self._changed)
            feed = Feed(f"replica {self.replica.name} rank {source.rank}", sink)
            subscription = Subscription(source, self._context, feed)
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
        self._changed(self.replica.slot)


class _Sink:
    """Where a rank's batches go."""

    def __init__(
        self,
        listener: Listener,
        slot: int,
        rank: int,
        index: TokenIndex,
        changed: Callable[[int], None],
    ) -> None:
        self._listener = listener
        self._slot = slot
        self._rank = rank
        self._index = index
        self._changed = changed

    def apply(self, batch: Batch) -> None:
        self._index.apply(self._slot, self._rank, batch)

    def empty(self, *, complete: bool) -> None:
        self._index.empty(self._slot, self._rank, complete=complete)

    def current(self) -> None:
        self._changed(self._slot)
