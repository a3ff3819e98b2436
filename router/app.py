"""Builds the parts of a router, runs them, and stops them in order. The only file that knows all of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import platform
import signal
import ssl
from importlib.metadata import version

import uvloop

from router.admin.engines import EngineCalls, Operation
from router.admin.parts import AdminParts, Phase
from router.admin.server import AdminServer
from router.config import Settings, replica_context, server_context
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.fleet.settings import FleetSettings
from router.http.gateway import Gateway
from router.http.server import ClientConnection
from router.http.sweep import Sweep
from router.index import ByteIndex
from router.insight.explain import Explain
from router.insight.recent import Recent
from router.placement import Placer
from router.policies import load_policy
from router.spans import SPANS
from router.telemetry import logs
from router.telemetry.access_log import AccessLog
from router.telemetry.exposition import Exposition
from router.telemetry.telemetry import Telemetry
from router.types import Policy

log = logging.getLogger(__name__)

# Until a model's usage has been seen: canonical prompt bytes for a token.
_BYTES_PER_TOKEN = 4.0
# Prompt tokens a second a replica computes, until its first tokens have been seen. Too high spreads
# load worse than too low (docs/policies.md).
_PREFILL_RATE = 8_000.0
_FIRST_ROUND = 5.0
_BACKLOG = 4096


class _Membership(FleetListener):
    """Keeps index, policies, counters and explanations in step with the fleet."""

    def __init__(
        self,
        fleet: Fleet,
        index: ByteIndex,
        policies: list[Policy],
        explain: Explain,
        telemetry: Telemetry,
    ) -> None:
        self._fleet = fleet
        self._index = index
        self._policies = policies
        self._explain = explain
        self._telemetry = telemetry

    def on_added(self, replica: Replica) -> None:
        """An empty cache, as large as the engine says."""
        self._index.add_replica(replica.slot, _weight(replica.kv_tokens))
        self._telemetry.revived(replica.name)
        self._tell()

    def on_removed(self, replica: Replica) -> None:
        """What it held is gone."""
        self._index.remove_replica(replica.slot)
        self._telemetry.retired(replica.name)
        self._tell()

    def on_emptied(self, replica: Replica) -> None:
        """It restarted."""
        self._index.forget(replica.slot)

    def on_resized(self, replica: Replica, tokens: int) -> None:
        """Its KV cache is of another size than thought."""
        self._index.resize(replica.slot, _weight(tokens))

    def _tell(self) -> None:
        names = self._fleet.names()
        for policy in self._policies:
            policy.members(names)
        self._explain.members(names)


def _weight(tokens: int) -> int:
    return int(tokens * _BYTES_PER_TOKEN)


class App:
    """One router. `start`, then `stop`; or `run` for the whole life of a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        self.explain = Explain(settings.explain_requests)
        self.access_log = AccessLog(settings.access_log, blocks=settings.access_log_blocks)
        self.index = ByteIndex(SPANS)
        self.fleet = Fleet(
            FleetSettings(
                replicas=settings.replicas,
                api_key=settings.replica_api_key,
                verify=settings.replica_verify,
                ca=settings.replica_ca,
                kv_cache_tokens=settings.kv_cache_tokens,
                kv_cache_guess=settings.kv_cache_guess,
                prefill_rate=settings.prefill_rate or _PREFILL_RATE,
                health_interval=settings.health_interval,
                health_timeout=settings.health_timeout,
                unhealthy_after=settings.unhealthy_after,
                breaker_failures=settings.breaker_failures,
                breaker_cooldown=settings.breaker_cooldown,
                slow_start=settings.slow_start,
                metrics_interval=settings.metrics_interval,
                models_interval=settings.models_interval,
            )
        )
        policy = load_policy(settings.policy)
        by_load = load_policy("least_loaded")
        learn = settings.prefill_rate == 0
        loads = self.fleet.loads
        self.placer = Placer(
            self.index, policy, loads, learn_speed=learn, bytes_per_token=_BYTES_PER_TOKEN
        )
        self.balancer = Placer(self.index, by_load, loads, learn_speed=False)
        self.fleet.listen(
            _Membership(self.fleet, self.index, [policy, by_load], self.explain, self.telemetry)
        )
        self.phase = Phase.STARTING
        self.port = 0
        """The front port, once started."""
        self._servers: list[asyncio.Server] = []
        self._sweep: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen and watch the fleet. Raises OSError when a port cannot be had."""
        settings = self.settings
        loop = asyncio.get_running_loop()
        self.access_log.start()
        self.gateway = gateway = Gateway(
            settings,
            self.fleet,
            self.placer,
            self.balancer,
            self.telemetry,
            self.explain,
            self.access_log,
            loop,
        )
        gateway.replica_tls = replica_context(settings)
        await self.fleet.start()
        self.admin = self._admin()
        await self.admin.start()
        tls: ssl.SSLContext | None = server_context(settings.tls_cert, settings.tls_key) if settings.tls_cert else None
        server = await loop.create_server(
            lambda: ClientConnection(gateway),
            settings.host,
            settings.port,
            ssl=tls,
            backlog=_BACKLOG,
        )
        self._servers.append(server)
        self.port = server.sockets[0].getsockname()[1]
        self._sweep = loop.create_task(Sweep(gateway).run())
        # What is alive now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)

    def _admin(self) -> AdminServer:
        settings = self.settings
        build = {
            "version": version("warmroute"),
            "python": platform.python_version(),
            "policy": settings.policy,
        }
        parts = AdminParts(
            fleet=self.fleet,
            telemetry=self.telemetry,
            exposition=Exposition(
                self.telemetry, self.fleet, self.index, self.access_log, build
            ),
            explain=self.explain,
            recent=Recent(),
            index=self.index,
            engines=EngineCalls(self.fleet.settings),
            phase=lambda: self.phase,
            engine_changed=self._engine_changed,
        )
        return AdminServer(
            parts,
            settings.admin_host,
            settings.admin_port,
            key=settings.admin_key,
            hosts=settings.admin_names,
        )

    def _engine_changed(self, replica: Replica, operation: Operation, emptied: bool) -> None:
        """An engine did what the admin port asked of it."""
        if emptied:
            self.index.forget(replica.slot)
        if operation.changes_models:
            self.fleet.reread_models(replica)

    async def ready(self) -> None:
        """Wait until every replica was tried once, so that the first requests find the fleet known."""
        await self.fleet.wait_first_round(_FIRST_ROUND)
        self.phase = Phase.SERVING

    async def stop(self) -> None:
        """Take no more, let what is in progress finish within drain_timeout, close everything."""
        gateway = self.gateway
        gateway.closing = True
        for server in self._servers:
            server.close()
        for client in list(gateway.clients):
            if client.idle:
                client.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout):
                while gateway.exchanges:
                    await asyncio.sleep(0.02)
        cut = len(gateway.exchanges)
        if cut:
            log.warning("%d requests were cut off after drain_timeout", cut)
        for client in list(gateway.clients):
            client.transport.abort() if client.exchange is not None else client.close()
        for task in list(gateway.tasks):
            task.cancel()
        for pool in gateway.pools:
            pool.close()
        if self._sweep is not None:
            self._sweep.cancel()
        await self.fleet.stop()
        await self.admin.stop()
        # Its reader may have stopped reading: waiting for it must not stop the loop.
        await asyncio.to_thread(self.access_log.close)


async def _serve(settings: Settings) -> int:
    app = App(settings)
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    try:
        await app.start()
    except OSError as exc:
        log.error("cannot listen: %s", exc)
        return 1
    where = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert else "http"
    log.info(
        "warmroute listens on %s://%s:%d, admin on http://%s:%d, %d replicas, policy %s",
        scheme,
        where,
        app.port,
        settings.admin_host,
        app.admin.port,
        len(settings.replicas),
        settings.policy,
    )
    with contextlib.suppress(asyncio.CancelledError):
        await app.ready()
    await asked_to_stop.wait()
    log.info("stopping: not ready from now on, still serving for settle_time (%gs)", settings.settle_time)
    app.phase = Phase.DRAINING
    asked_to_stop.clear()
    # A second signal ends the settling: whoever presses Ctrl-C twice does not want to wait.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.settle_time):
            await asked_to_stop.wait()
    await app.stop()
    log.info("stopped")
    return 0


def run(settings: Settings) -> int:
    """Run a router until SIGTERM or SIGINT. Returns the process's exit status."""
    logs.setup(settings.log_level)
    return uvloop.run(_serve(settings))



