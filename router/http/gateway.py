"""What all connections of the data path share, and the one place where a request's end is told."""

from __future__ import annotations

import asyncio
import logging
import ssl
from time import monotonic, time
from typing import TYPE_CHECKING

from router import descriptors
from router.config import Settings
from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.http.classify import Paths
from router.http.heads import SPECIAL_HEADERS
from router.http.local_reply import shown_path
from router.http.retry_budget import RetryBudget
from router.http.upstream import Pool
from router.scheduling.placer import INDEX_ROOM, Placer
from router.telemetry.access_log import AccessLog
from router.telemetry.explain import Explain
from router.telemetry.ledger import deliverable
from router.telemetry.record import Finished, Outcome
from router.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from router.exact.mode import ExactMode
    from router.http.exchange import Exchange
    from router.http.paths import PathRule
    from router.http.request import Request
    from router.http.server import ClientConnection

log = logging.getLogger(__name__)

# Seconds between two log lines about a lack of the router's own.
_SHORTAGE_LOG_INTERVAL_S = 10.0

# Modelled caches fuller than this evict, so that a missing block was probably evicted.
_NEARLY_FULL_SHARE = 0.95

# What a client that does not read may let wait in memory before its replica is not read any more.
_WRITE_HIGH = 32 * 1024
_WRITE_LOW = 8 * 1024

_REFUSALS = {
    408: Outcome.CLIENT_SLOW,
    413: Outcome.TOO_LARGE,
    431: Outcome.TOO_LARGE,
    500: Outcome.INTERNAL,
    503: Outcome.OVERLOADED,
}


class Gateway(FleetListener):
    """The data path's shared state: connections, exchanges in progress, the pool of each slot."""

    def __init__(
        self,
        settings: Settings,
        fleet: Fleet,
        placer: Placer,
        balancer: Placer,
        telemetry: Telemetry,
        explain: Explain,
        access_log: AccessLog,
        loop: asyncio.AbstractEventLoop,
        holders: Holders,
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.placer = placer
        """For requests routed by prefix."""
        self.balancer = balancer
        """For requests balanced by load."""
        self.exact: ExactMode | None = None
        """Tokenises prompts, when exact mode is on."""
        self.telemetry = telemetry
        self.live = telemetry.live
        self.explain = explain
        self.access_log = access_log
        self.loop = loop
        self.paths = Paths(settings.extra_paths)
        self.holders = holders
        """Which replica keeps which response."""
        self.session_header = settings.session_header.encode()
        self.special_headers = SPECIAL_HEADERS | {self.session_header}
        self.retry_after = b"retry-after: %d\r\n" % max(1, round(settings.retry_after))
        origin = settings.allow_origin.encode()
        self.allow_origin = b"access-control-allow-origin: %b\r\n" % origin if origin else b""
        """The header line of answers of its own; empty where there is none."""
        self.asks_usage = settings.stream_usage
        self.retry_budget = RetryBudget(settings.retry_budget)
        self.replica_tls: ssl.SSLContext | None = None
        self.clients: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.pools: list[Pool] = []
        """By slot."""
        self.shed = 0
        """Connections there was no room for that are open still."""
        self.files = descriptors.limit()
        """Open files this process may have."""
        self.most_clients = self.files_for_clients = 0
        self._told_lack = float("-inf")
        self.closing = False
        """Shutting down: every answer is its connection's last."""
        self.write_high, self.write_low = _WRITE_HIGH, _WRITE_LOW
        fleet.listen(self)

    def asks_engine(self, request: Request) -> bool:
        """Whether a request for the models is an engine's to answer first: where engines ask for a
        key, their names are for who has one."""
        return request.method == b"GET" and self.fleet.guarded

    # -- the fleet changes

    def on_added(self, replica: Replica) -> None:
        """A replica came: give its slot a pool, the ranks of one endpoint the same."""
        self._divide_files()
        pool = self.pools[replica.ranks[0].slot] if replica.rank else Pool(self, replica)
        if replica.slot == len(self.pools):
            self.pools.append(pool)
        else:
            self.pools[replica.slot] = pool

    def on_removed(self, replica: Replica) -> None:
        """A replica left: its idle connections go; those in use end with their exchanges."""
        self._divide_files()
        if not replica.rank:
            self.pools[replica.slot].retire()

    def on_emptied(self, replica: Replica) -> None:
        """A replica restarted: connections to what it was are dead."""
        self.pools[replica.slot].clear()

    def adopt(self, settings: Settings) -> None:
        """Settings that may change while it serves are others now."""
        self.settings = settings
        self._divide_files()

    # -- room

    def _divide_files(self) -> None:
        """What is kept back depends on how many replicas there are."""
        replicas = sum(replica is not None for replica in self.fleet.replicas)
        self.most_clients = min(
            self.settings.max_connections, descriptors.clients_allowed(replicas, self.files)
        )
        self.files_for_clients = self.files - descriptors.kept_back(replicas, self.files)

    def has_room(self, number: int) -> bool:
        """Whether one more client may be served; number: its descriptor, which the system makes the
        lowest that is free, so that it tells how many are not."""
        return len(self.clients) < self.most_clients and number < self.files_for_clients

    def lacks(self, error: OSError) -> None:
        """A connection to a replica could not be made for a lack of the router's own."""
        now = monotonic()
        if now - self._told_lack >= _SHORTAGE_LOG_INTERVAL_S:
            self._told_lack = now
            log.error(
                "the router itself cannot open connections: %s; no replica is blamed for it "
                "(raise the limit of open files, or of local ports, or lower max_connections)",
                error,
            )

    # -- a request's end

    def ended(self, exchange: Exchange, outcome: str) -> None:
        """Count, log and remember a request. Called once for each."""
        request, placement, replica = exchange.request, exchange.placement, exchange.replica
        relay, prompt = exchange.relay, exchange.prompt
        rule = request.rule
        started = request.started
        duration = monotonic() - started
        done = Finished(
            request.request_id.decode(),
            rule.api,
            request.method.decode(),
            rule.path or shown_path(request.target),
            exchange.model,
        )
        done.status = exchange.status
        done.outcome = outcome
        done.retries = exchange.retries
        done.started = time() - duration
        done.duration = duration
        done.overhead = exchange.overhead
        done.bytes_in = exchange.bytes_in
        done.bytes_out = exchange.bytes_out if relay is None else relay.bytes_out
        chain = None
        if placement is not None and replica is not None:
            done.slot = placement.slot
            done.replica = replica.name
            done.reason = placement.reason
            if prompt is None:
                done.policy = "balance"
            else:
                chain = placement.chain
                load = placement.load
                held = placement.held_tokens
                done.policy = self.settings.policy
                done.considered = placement.considered
                done.key = exchange.key
                done.uncached_tokens = placement.uncached
                done.available = placement.available_tokens
                done.chosen = held
                done.cache_full = (
                    load.cache_used * INDEX_ROOM >= load.cache_tokens * _NEARLY_FULL_SHARE
                )
                if prompt.stream:
                    done.stream = True
                    if relay is not None and relay.first_at:
                        done.ttft = relay.first_at - started
                usage = exchange.usage
                if usage is None:
                    done.predicted = held
                else:
                    done.prompt_tokens = usage.prompt_tokens
                    done.output_tokens = usage.output_tokens
                    done.delivered = usage.cached_tokens
                    # The prompt's tokens are known now: its own bytes for a token are better than
                    # what is usual for the model.
                    exactly = usage.prompt_tokens / placement.tokens if usage.prompt_tokens else 1.0
                    held *= exactly
                    done.available *= exactly
                    done.chosen = held
                    done.predicted = deliverable(held, usage.prompt_tokens, replica.block_tokens)
                    if prompt.several and usage.cached_tokens > done.predicted:
                        # The other answers found what the first one computed: no surplus.
                        done.delivered = int(done.predicted)
                    doubts = prompt.doubts
                    if doubts is not None and usage.prompt_tokens and usage.cached_tokens >= 0:
                        size = prompt.size / usage.prompt_tokens
                        done.rendered_differently = doubts.explain(
                            held * size, usage.cached_tokens * size
                        )
                if prompt.doubts is not None and prompt.doubts.unknown:
                    self.fleet.templates.unknown(exchange.model, prompt.doubts.unknown)
        self.telemetry.observe(done)
        self.explain.add(done)
        self.access_log.add(done, chain, prompt.size if prompt is not None else 0)

    def bad_request(self, rule: PathRule, status: int, request_id: bytes) -> None:
        """Count a request that was refused before it was one."""
        done = Finished(request_id.decode(), rule.api)
        done.status = status
        done.outcome = _REFUSALS.get(status, Outcome.BAD_REQUEST)
        done.started = time()
        self.telemetry.observe(done)
        self.access_log.add(done)
