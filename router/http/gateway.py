"""What all connections of the data path share, and the one place where a request's end is told."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Coroutine
from time import monotonic, time
from typing import TYPE_CHECKING

from router import descriptors
from router.config import Settings
from router.diagnosis.agents import AGENT_HEADER, SESSION_HEADERS
from router.disaggregation.connectors import connector_of
from router.disaggregation.disaggregation import Disaggregation
from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.http.hold import Holding
from router.http.queueing import RequestQueue
from router.http.request import DIRECTING, SPECIAL_HEADERS
from router.http.routes import Paths
from router.http.upstream import Failure, Pool, RetryBudget, UpstreamConnection
from router.queue.classes import HEADERS
from router.scheduling.placer import Placer
from router.telemetry.access_log import AccessLog
from router.telemetry.explain import Explain
from router.telemetry.record import Finished, Outcome
from router.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from router.diagnosis import Diagnoser
    from router.exact.mode import ExactMode
    from router.http.request import Request
    from router.http.routes import PathRule
    from router.overflow.overflow import Overflow
    from router.tenants.tenants import Tenants
    from router.tracing.tracer import Tracer

log = logging.getLogger(__name__)

# Seconds between two log lines about a lack of the router's own.
_SHORTAGE_LOG_INTERVAL_S = 10.0

# Turns of the event loop after which a connection that was closed has given up its file.
_CLOSED_AFTER = 3

# What a client that does not read may let wait in memory before its replica is not read any more.
_WRITE_HIGH = 32 * 1024
_WRITE_LOW = 8 * 1024

_REFUSALS = {
    401: Outcome.UNAUTHORIZED,
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
        self.disaggregation: Disaggregation | None = None
        """Splits prefill and decode; None until a replica prefills for others."""
        self.diagnoser: Diagnoser | None = None
        """Finds out why prompts miss caches, where that is on."""
        self.tracer: Tracer | None = None
        """Traces requests, when tracing is on."""
        self.tenants: Tenants | None = None
        """Keys, limits and isolation, where they are set up."""
        self.credential_headers: dict[bytes, str] = {}
        """Header -> its field of a request's credentials; none without tenants."""
        self.engine_authorization = b""
        """With tenants: what engines get in place of the client's; empty for none."""
        self.telemetry = telemetry
        self.live = telemetry.live
        self.explain = explain
        self.access_log = access_log
        self.loop = loop
        self.paths = Paths(settings.extra_paths)
        self.holders = holders
        """Which replica keeps which response."""
        self.session_headers = {name: place for place, name in enumerate(SESSION_HEADERS)}
        """Headers that name a session -> place, the least counts: one that the settings name, then
        those that clients send of their own accord."""
        self.session_headers.setdefault(settings.session_header.encode(), -1)
        self.special_headers = SPECIAL_HEADERS | {*HEADERS, *self.session_headers, AGENT_HEADER}
        if not settings.trust_kv_transfer:
            # What is looked at and not taken up is left out.
            self.special_headers |= DIRECTING
        self.retry_after = b"retry-after: %d\r\n" % max(1, round(settings.retry_after))
        origin = settings.allow_origin.encode()
        self.allow_origin = b"access-control-allow-origin: %b\r\n" % origin if origin else b""
        """The header line of answers of its own; empty where there is none."""
        self.asks_usage = settings.stream_usage
        self.retry_budget = RetryBudget(settings.retry_budget)
        self.queue = RequestQueue(settings, fleet, placer, loop)
        """Where requests that are routed by prefix wait."""
        self.holding = Holding(settings, fleet, telemetry.live)
        """Where requests wait while no replica of their model is usable."""
        self.replica_tls: ssl.SSLContext | None = None
        self.overflow: Overflow | None = None
        """Targets outside of the fleet, where there are any."""
        self.overflow_pools: dict[str, Pool] = {}
        """By target."""
        self.overflow_tls: ssl.SSLContext | None = None
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

    def attach(self, tenants: Tenants) -> None:
        """Serve these tenants only."""
        self.tenants = tenants
        self.credential_headers = tenants.headers
        self.special_headers |= {*tenants.headers}
        key = self.settings.replica_api_key
        self.engine_authorization = b"Bearer %b" % key.encode() if key else b""

    def overflow_to(self, overflow: Overflow) -> None:
        """Send these what the fleet cannot take."""
        self.overflow = overflow
        pools = {each.name: Pool(each.endpoint, self.loop) for each in overflow.targets}
        self.overflow_pools = pools
        if overflow.needs_tls:
            # The system's authorities, as other clients of such APIs; SSL_CERT_FILE names others.
            self.overflow_tls = ssl.create_default_context()
            self.overflow_tls.set_alpn_protocols(["http/1.1"])

    def asks_engine(self, request: Request) -> bool:
        """Whether a request for the models is an engine's to answer first: where engines ask for a
        key, their names are for who has one."""
        # With tenants the keys are the router's own, and engines know none of them.
        return request.method == b"GET" and self.fleet.guarded and self.tenants is None

    # -- the fleet changes

    def on_added(self, replica: Replica) -> None:
        """A replica came: give its slot a pool, the ranks of one endpoint the same."""
        self.on_role(replica)
        self._divide_files()
        pool = self.pools[replica.ranks[0].slot] if replica.rank else Pool(replica, self.loop)
        if replica.slot == len(self.pools):
            self.pools.append(pool)
        else:
            self.pools[replica.slot] = pool

    def on_removed(self, replica: Replica) -> None:
        """A replica left: its idle connections go; those in use end with their exchanges."""
        self._divide_files()
        if self.disaggregation is not None:
            self.disaggregation.emptied(replica.slot, replica.host)
        if not replica.rank:
            self.pools[replica.slot].retire()

    def on_role(self, replica: Replica) -> None:
        """A replica is for something else: the first that prefills has the legs counted."""
        if replica.role != "decode" and self.disaggregation is None:
            self.disaggregation = Disaggregation(self.placer.index, connector_of(self.settings))
            self.telemetry.legs = self.disaggregation

    def on_emptied(self, replica: Replica) -> None:
        """A replica restarted: connections to what it was are dead."""
        self.pools[replica.slot].clear()
        if self.disaggregation is not None:
            self.disaggregation.emptied(replica.slot, replica.host)

    def adopt(self, settings: Settings) -> None:
        """Settings that may change while it serves are others now."""
        self.settings = self.holding.settings = settings
        self.queue.adopt(settings)
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
        return self.live.connections < self.most_clients and number < self.files_for_clients

    # -- connections to replicas

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have something waited for beside the event that began it."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def connect(self, slot: int) -> UpstreamConnection | Failure:
        """A new connection to a replica, or why there is none."""
        return await self.connect_to(self.pools[slot], self.replica_tls)

    async def connect_to(
        self, pool: Pool, tls: ssl.SSLContext | None
    ) -> UpstreamConnection | Failure:
        """The same for whomever a pool is of."""
        settings = self.settings
        try:
            try:
                return await pool.connect(settings.connect_timeout, tls)
            except OSError as exc:
                if not descriptors.is_local(exc):
                    raise
            # Idle connections hold what is lacking: give them up, and try again once they are
            # closed.
            for other in self.pools:
                other.clear()
            for _ in range(_CLOSED_AFTER):
                await asyncio.sleep(0)
            return await pool.connect(settings.connect_timeout, tls)
        except TimeoutError:
            what = "did not accept a connection in time"
            return Failure(504, Outcome.TIMEOUT_CONNECT, "timeout", what)
        except OSError as exc:
            what = f"could not be connected to ({exc})"
            if descriptors.is_local(exc):
                self._lacks(exc)
                return Failure(503, Outcome.OVERLOADED, None, what)
            return Failure(502, Outcome.CONNECT, "connect", what)

    def _lacks(self, error: OSError) -> None:
        """A connection to a replica could not be made for a lack of the router's own."""
        now = monotonic()
        if now - self._told_lack >= _SHORTAGE_LOG_INTERVAL_S:
            self._told_lack = now
            log.error(
                "the router itself cannot open connections: %s; no replica is blamed for it "
                "(raise the limit of open files, or of local ports, or lower max_connections)",
                error,
            )

    # -- no request

    def bad_request(self, rule: PathRule, status: int, request_id: bytes) -> None:
        """Count a request that was refused before it was one."""
        done = Finished(request_id.decode(), rule.api)
        done.status = status
        done.outcome = _REFUSALS.get(status, Outcome.BAD_REQUEST)
        done.started = time()
        self.telemetry.observe(done)
        self.access_log.add(done)
