"""What all connections of the data path share, and the one place where a request's end is told."""

from __future__ import annotations

import asyncio
import ssl
from time import monotonic, time
from typing import TYPE_CHECKING

from router.config import Settings
from router.fleet.fleet import Fleet, FleetListener
from router.fleet.replica import Replica
from router.http.retry_budget import RetryBudget
from router.http.upstream import Pool
from router.insight.explain import Explain
from router.insight.ledger import deliverable
from router.insight.record import Finished, Outcome
from router.placement import Placer
from router.telemetry.access_log import AccessLog
from router.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.paths import PathRule
    from router.http.server import ClientConnection

# vLLM's usual block size in tokens.
_BLOCK_TOKENS = 16
# Modelled caches fuller than this evict, so that a missing block was probably evicted.
_NEARLY_FULL = 0.95


class Gateway(FleetListener):
    """The data path's shared state: connections, exchanges in progress, and the pool of each slot."""

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
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.placer = placer
        """For requests routed by prefix."""
        self.balancer = balancer
        """For requests balanced by load."""
        self.telemetry = telemetry
        self.live = telemetry.live
        self.explain = explain
        self.access_log = access_log
        self.loop = loop
        self.session_header = settings.session_header.encode()
        self.retry_after = b"retry-after: %d\r\n" % max(1, round(settings.retry_after))
        self.retry_budget = RetryBudget(settings.retry_budget)
        self.replica_tls: ssl.SSLContext | None = None
        self.clients: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.pools: list[Pool] = []
        """By slot."""
        self.closing = False
        """Shutting down: every answer is its connection's last."""
        fleet.listen(self)

    # -- the fleet changes

    def on_added(self, replica: Replica) -> None:
        """A replica came: give its slot a pool."""
        pool = Pool(self, replica)
        if replica.slot == len(self.pools):
            self.pools.append(pool)
        else:
            self.pools[replica.slot] = pool

    def on_removed(self, replica: Replica) -> None:
        """A replica left: its idle connections go; those in use end with their exchanges."""
        self.pools[replica.slot].close()

    def on_emptied(self, replica: Replica) -> None:
        """A replica restarted: connections to what it was are dead."""
        self.pools[replica.slot].close()

    # -- a request's end

    def ended(self, exchange: Exchange, outcome: str) -> None:
        """Count, log and remember a request. Called once for each."""
        request = exchange.request
        now = monotonic()
        placement, replica, usage = exchange.placement, exchange.replica, exchange.usage
        rule = request.rule
        duration = now - request.started
        done = Finished(
            request.request_id.decode("ascii"),
            rule.api,
            request.method.decode("ascii"),
            request.target.partition(b"?")[0].decode("latin-1"),
            exchange.model,
        )
        done.status = exchange.status
        done.outcome = outcome
        done.retries = exchange.retries
        done.started = time() - duration
        done.duration = duration
        done.overhead = exchange.overhead
        done.bytes_in = request.body_size
        done.bytes_out = exchange.bytes_out
        if placement is not None and replica is not None:
            done.slot = placement.slot
            done.replica = replica.name
            done.reason = placement.reason
            done.considered = placement.considered
            prompt = exchange.prompt
            if prompt is None:
                done.policy = "balance"
            else:
                done.policy = self.settings.policy
                done.key = exchange.key
                done.stream = prompt.stream
                done.uncached_tokens = placement.uncached
                if prompt.stream and exchange.first_at:
                    done.ttft = exchange.first_at - request.started
                done.available = placement.available_tokens
                done.chosen = placement.held_tokens
                load = placement.load
                done.cache_full = load.cache_used >= load.cache_tokens * _NEARLY_FULL
                tokens = placement.tokens
                if usage is not None:
                    tokens = done.prompt_tokens = usage.prompt_tokens
                    done.output_tokens = usage.output_tokens
                    done.delivered = usage.cached_tokens
                done.predicted = deliverable(placement.held_tokens, tokens, _BLOCK_TOKENS)
        self.telemetry.observe(done)
        self.explain.add(done)
        if placement is not None and exchange.prompt is not None:
            self.access_log.add(done, placement.chain, exchange.prompt.size)
        else:
            self.access_log.add(done)

    def bad_request(self, rule: PathRule | None, status: int, code: str) -> None:
        """Count a request that was refused before it was one."""
        outcome = {
            413: Outcome.TOO_LARGE,
            431: Outcome.TOO_LARGE,
            408: Outcome.CLIENT_SLOW,
            503: Outcome.OVERLOADED,
        }.get(status, Outcome.BAD_REQUEST)
        done = Finished("", rule.api if rule is not None else "other")
        done.status = status
        done.outcome = outcome
        done.started = time()
        self.telemetry.observe(done)
        self.access_log.add(done)

    def explain_lines(self, exchange: Exchange) -> list[bytes]:
        """Response headers that name what was chosen and expected, for clients that asked."""
        placement, replica = exchange.placement, exchange.replica
        assert placement is not None
        assert replica is not None
        return [
            b"x-warmroute-replica: " + replica.name.encode(),
            b"x-warmroute-predicted-tokens: %d" % int(placement.held_tokens),
            b"x-warmroute-reason: " + placement.reason.encode(),
        ]
