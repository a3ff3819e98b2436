"""Builds the parts of a router, runs them, and stops them in order: the only file that knows all of
them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import platform
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec
import uvloop

from router import descriptors
from router.admin.engines import EngineCalls, Operation
from router.admin.parts import AdminParts, Phase
from router.admin.server import AdminServer
from router.config import Settings, replica_context
from router.discovery import Discovery, DiscoveryError
from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.fleet.settings import FleetSettings
from router.http.front import Server
from router.http.gateway import Gateway
from router.index import ByteIndex
from router.malloc import keep_freed_memory
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.reload import Reloader, Reread
from router.scheduling.placer import INDEX_ROOM, Placer
from router.signals import attend
from router.state.sync import StateSync, Transport
from router.state.transports import redis_transport
from router.telemetry import logs
from router.telemetry.access_log import STANDARD_OUTPUT, AccessLog
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.recent import Recent
from router.telemetry.telemetry import Telemetry
from router.types import Policy
from router.workers.worker import Worker, from_environment

if TYPE_CHECKING:
    from router.exact.mode import ExactMode

log = logging.getLogger(__name__)

# Until a model's usage has been seen: canonical prompt bytes for a token.
_BYTES_PER_TOKEN = 4.0
# Prompt tokens a second a replica computes, until its first tokens have been seen. Too high spreads
# load worse than too low (docs/design/policies.md).
_PREFILL_RATE = 8_000.0
_FIRST_ROUND = 5.0
# Seconds a router waits for what the others know, before it starts without.
_FIRST_LOAD = 5.0


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
        self.shared: StateSync | None = None
        self._fleet = fleet
        self._index = index
        self._policies = policies
        self._explain = explain
        self._telemetry = telemetry

    def on_added(self, replica: Replica) -> None:
        """An empty cache, as large as the engine says."""
        self._index.add_replica(replica.slot, _weight(replica.remembered_tokens))
        self._telemetry.revived(replica.name)
        self._tell()

    def on_removed(self, replica: Replica) -> None:
        """What it held is gone."""
        self._index.remove_replica(replica.slot)
        self._telemetry.retired(replica.name)
        self._tell()

    def on_emptied(self, replica: Replica) -> None:
        """It restarted."""
        if self.shared is None or self.shared.emptied(replica):
            self._index.forget(replica.slot)

    def on_resized(self, replica: Replica) -> None:
        """Its KV cache is of another size than thought."""
        self._index.resize(replica.slot, _weight(replica.remembered_tokens))

    def _tell(self) -> None:
        names = self._fleet.names()
        for policy in self._policies:
            policy.members(names)
        self._explain.members(names)


def _weight(tokens: int) -> int:
    return int(tokens * _BYTES_PER_TOKEN * INDEX_ROOM)


class App:
    """One router. `start`, then `stop`; or `run` for the whole life of a process."""

    def __init__(self, settings: Settings, transport: Transport | None = None) -> None:
        """transport: what a worker shares through where no `state` is set."""
        self.settings = settings
        self.telemetry = Telemetry(expected=settings.expected_models)
        self.explain = Explain(settings.explain_requests)
        self.access_log = AccessLog(
            settings.access_log,
            blocks=settings.access_log_blocks,
            people=logs.for_people(settings.log_format, STANDARD_OUTPUT),
        )
        self.index = ByteIndex(SPANS)
        self.fleet = Fleet(
            FleetSettings(
                replicas=settings.replicas,
                api_key=settings.replica_api_key,
                verify=settings.replica_verify,
                ca=settings.replica_ca,
                kv_cache_tokens=settings.kv_cache_tokens,
                kv_offload_tokens=settings.kv_offload_tokens,
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
                models=settings.expected_models,
            )
        )
        policy = load_policy(settings.policy)
        by_load = load_policy("least_loaded")
        learn = settings.prefill_rate == 0
        loads = self.fleet.loads
        self.placer: Placer
        self.exact: ExactMode | None = None
        if settings.exact:
            # Its libraries are an extra: nothing of it is imported when it is off.
            from router.exact.build import exact_placer

            self.exact, self.placer = exact_placer(
                settings, self.fleet, self.index, policy, learn, _BYTES_PER_TOKEN
            )
        else:
            self.placer = Placer(
                self.index, policy, loads, learn_speed=learn, bytes_per_token=_BYTES_PER_TOKEN
            )
        self.balancer = Placer(self.index, by_load, loads, learn_speed=False)
        membership = _Membership(
            self.fleet, self.index, [policy, by_load], self.explain, self.telemetry
        )
        self.fleet.listen(membership)
        self.holders = Holders()
        self.fleet.listen(self.holders)
        if settings.state:
            transport = redis_transport(settings)
        self.shared: StateSync | None = None
        if transport is not None:
            placers = (self.placer, self.balancer)
            self.shared = StateSync(
                self.fleet, self.index, placers, transport, self._resize, self.holders
            )
            membership.shared = self.shared
        self.phase = Phase.STARTING
        self.port = 0
        """The front port, once started."""
        self.discovery = Discovery(settings, self.fleet) if settings.discovery != "off" else None
        self.gateway: Gateway
        self.front: Server
        self.admin: AdminServer

    async def start(self) -> None:
        """Listen and watch the fleet.

        Raises OSError when a port cannot be had, DiscoveryError when there is nobody to ask.
        """
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
            self.holders,
        )
        gateway.replica_tls = replica_context(settings)
        gateway.exact = self.exact
        self.front = Server(gateway)
        self.admin = self._admin()
        try:
            await self.front.start()
            await self.admin.start()
            await self.fleet.start()
            if self.exact is not None:
                self.exact.start()
            if self.discovery is not None:
                await self.discovery.start()
            if self.shared is not None:
                self.shared.start()
        except BaseException:
            await self.stop()
            raise
        self.port = self.front.port
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
                self.telemetry,
                self.fleet,
                self.index,
                self.access_log,
                build,
                self.discovery,
                self.shared,
                self.exact,
            ),
            explain=self.explain,
            recent=Recent(),
            index=self.index,
            engines=EngineCalls(self.fleet.settings),
            phase=lambda: self.phase,
            engine_changed=self._engine_changed,
            problem=self._problem,
            state=lambda: "alone" if self.shared is None else self.shared.word,
            exact=self.exact,
        )
        return AdminServer(
            parts,
            settings.admin_host,
            settings.admin_port,
            key=settings.admin_key,
            hosts=settings.admin_names,
        )

    def _problem(self) -> str:
        """Why the fleet may be out of date."""
        return self.discovery.problem if self.discovery is not None else ""

    def _engine_changed(self, replica: Replica, operation: Operation, emptied: bool) -> None:
        """An engine did what the admin port asked of it."""
        for rank in replica.ranks if emptied else ():
            if self.exact is not None:
                self.exact.emptied(rank)
            if self.shared is None or self.shared.emptied(rank):
                self.index.forget(rank.slot)
        if operation.changes_models:
            self.fleet.reread_models(replica)
        if operation.changes_rest:
            self.fleet.reread_rest(replica)

    def _resize(self, slot: int, tokens: int) -> None:
        self.index.resize(slot, _weight(tokens))

    async def ready(self) -> None:
        """Wait until every replica was tried once and what other routers know is loaded, so that
        the first requests find the fleet known."""
        if self.discovery is not None:
            await self.discovery.wait_first(_FIRST_ROUND)
        await self.fleet.wait_first_round(_FIRST_ROUND)
        if self.shared is not None:
            await self.shared.ready(_FIRST_LOAD)
        if self.phase is Phase.STARTING:
            self.phase = Phase.SERVING

    def adopt(self, live: dict[str, object]) -> None:
        """Take up settings that may change while it serves, and read the certificate anew.

        Raises OSError, ssl.SSLError where that does not load; everything stays as it was then.
        """
        settings = msgspec.structs.replace(self.settings, **live)
        self.front.reload_certificate()
        self.settings = settings
        self.gateway.adopt(settings)
        logs.set_level(settings.log_level)
        self.access_log.share = settings.access_log
        self.access_log.start()

    def settle(self) -> None:
        """Stopping begins: not ready any more, still serving."""
        self.phase = Phase.DRAINING
        self.front.settle()

    async def stop(self) -> None:
        """Take no more, let what is in progress finish within drain_timeout, close everything."""
        self.settle()
        await self.front.stop()
        if self.shared is not None:
            await self.shared.stop()
        if self.discovery is not None:
            await self.discovery.stop()
        if self.exact is not None:
            await self.exact.stop()
        await self.fleet.stop()
        await self.admin.stop()
        # Its reader may have stopped reading: waiting for it must not stop the loop.
        await asyncio.to_thread(self.access_log.close)


async def _serve(settings: Settings, worker: Worker | None, reread: Reread) -> int:
    reloader = Reloader(settings, reread)
    if worker is None:
        app = App(settings)
    else:
        settings = worker.settings
        app = App(settings, worker.transport)
        await worker.attach()
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    warning = descriptors.limit_warning(settings.max_connections, len(settings.replicas))
    if warning:
        log.warning("%s", warning)
    try:
        await app.start()
    except OSError as exc:
        log.error("cannot listen: %s", exc)
        return 1
    except DiscoveryError as exc:
        log.error("%s", exc)
        return 1
    attend(loop, lambda: reloader.router(app))
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
    if worker is not None:
        worker.ready(0 if app.shared is None else app.shared.router, app.admin.port)
    getting_ready = loop.create_task(app.ready())
    await asked_to_stop.wait()
    getting_ready.cancel()
    app.settle()
    log.info(
        "stopping: not ready from now on, still serving for settle_time (%g s); "
        "a second signal ends that, a third one cuts off what is in progress",
        settings.settle_time,
    )
    asked_to_stop.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.settle_time):
            await asked_to_stop.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.front.hurry.set)
    await app.stop()
    log.info("stopped")
    return 0


def run(settings: Settings, reread: Reread) -> int:
    """Run a router until SIGTERM or SIGINT. Returns the process's exit status."""
    descriptors.raise_limit()
    logs.setup(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        return uvloop.run(_serve(settings, from_environment(os.environ, settings), reread))
    finally:
        logs.close()
