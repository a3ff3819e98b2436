"""Builds the parts of a router, runs them, and stops them in order: the only file that knows all of
them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
from collections.abc import Mapping
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING

import msgspec
import uvloop

from router import descriptors, garbage
from router.admin.engines import OPERATIONS, EngineCalls, Operation
from router.admin.parts import AdminParts, ConsoleParts, Phase
from router.admin.server import AdminServer
from router.audit import Auditor
from router.config import Settings, replica_context
from router.diagnosis import Diagnoser
from router.discovery import Discovery, DiscoveryError
from router.fleet.fleet import Fleet
from router.fleet.holders import Holders
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.fleet.waking import Waker
from router.http.gateway import Gateway
from router.http.server import Server
from router.index import ByteIndex
from router.listening import cannot_listen
from router.malloc import keep_freed_memory
from router.overflow.overflow import Overflow
from router.overflow.overflow_file import read_targets
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.reload import Reloader, Reread
from router.scheduling.adapters import Adapters
from router.scheduling.device_model import DeviceModel
from router.scheduling.placer import Placer, index_weight
from router.shadow.listeners import Listeners
from router.shadow.shadows import Shadows
from router.signals import attend
from router.state.sync import StateSync, Transport
from router.state.transports import redis_connector, redis_transport
from router.telemetry import logs
from router.telemetry.access_log import STANDARD_OUTPUT, AccessLog
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.loop_watch import LoopWatch
from router.telemetry.recent import Recent
from router.telemetry.telemetry import Telemetry
from router.tenants.counters import Counter
from router.tenants.isolation_guard import IsolationGuard
from router.tenants.shared_ledger import SharedLedger
from router.tenants.tenants import Tenants, shared_ledger
from router.tracing.tracer import Tracer
from router.types import Policy
from router.workers.worker import Worker, from_environment

if TYPE_CHECKING:
    from router.exact.mode import ExactMode
    from router.picker.server import PickerServer

log = logging.getLogger(__name__)

# Of a cache, beyond which it is taken to evict.
_FULL_SHARE = 0.95
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
        adapters: Adapters,
        tiers: DeviceModel,
    ) -> None:
        self._adapters = adapters
        self.shared: StateSync | None = None
        self.tracer: Tracer | None = None
        self._fleet = fleet
        self._index = index
        self._policies = policies
        self._explain = explain
        self._telemetry = telemetry
        self._tiers = tiers
        self._telling: asyncio.Handle | None = None

    def on_added(self, replica: Replica) -> None:
        """An empty cache, as large as the engine says."""
        self._index.add_replica(replica.slot, index_weight(replica.remembered_tokens))
        self._resize_tier(replica)
        self._telemetry.revived(replica.name)
        if replica.rank:
            self._tell()
        else:
            self._tell_soon()

    def on_removed(self, replica: Replica) -> None:
        """The replica left the fleet: the index forgets it."""
        self._index.remove_replica(replica.slot)
        self._adapters.forget(replica.slot)
        self._tiers.remove(replica.slot)
        self._telemetry.retired(replica.name)
        self._tell()

    def on_emptied(self, replica: Replica) -> None:
        """The replica restarted, so its cache is empty; or it rests, which may empty the store
        behind it as well."""
        self._adapters.emptied(replica.slot)
        self.on_adapters(replica)
        stays = self._tiers.outlives(replica.slot) and not replica.resting
        if not stays and (self.shared is None or self.shared.emptied(replica)):
            self._index.forget(replica.slot)
        self._tiers.forget(replica.slot)

    def on_adapters(self, replica: Replica) -> None:
        """Which LoRA adapters the replica lists, and which of them have requests."""
        slot, engine = replica.slot, replica.engine
        listed = [card.id for card in self._fleet.cards(slot) if card.parent]
        if not (listed or self._fleet.adapters or self._adapters.knows(slot)):
            return
        self._adapters.models_told(slot, listed)
        if engine is not None:
            self._adapters.metrics_told(slot, engine.max_loras or 0, engine.adapters)

    def on_resized(self, replica: Replica) -> None:
        """The size of the replica's KV cache has become known or changed."""
        self._index.resize(replica.slot, index_weight(replica.remembered_tokens))
        self._resize_tier(replica)

    def _resize_tier(self, replica: Replica) -> None:
        weight = index_weight(replica.kv_tokens)
        self._tiers.resize(replica.slot, weight, tier=replica.offload_tokens > 0)

    def _tell_soon(self) -> None:
        """Once for all that come in one turn of the event loop: none of them takes requests before
        it was asked whether it is well."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # those that are listed, before the router starts
            self._tell()
            return
        if self._telling is None:
            self._telling = loop.call_soon(self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        names = self._fleet.names()
        for policy in self._policies:
            policy.members(names)
        self._explain.members(names)
        if self.tracer is not None:
            self.tracer.members(names)


class App:
    """One router. `start`, then `stop`; or `run` for the whole life of a process."""

    def __init__(
        self,
        settings: Settings,
        transport: Transport | None = None,
        sources: Mapping[str, str] | None = None,
        *,
        counter: Counter | None = None,
        picker: bool = False,
    ) -> None:
        """transport, counter: what a worker shares through, and where it counts limits, where no
        `state` is set. sources: where each
        setting that somebody gave came from, for the admin port to show. picker: answers a data
        plane's calls for an endpoint, instead of clients' requests."""
        self._sources = sources or {}
        self.settings = settings
        self._picker = picker
        self.telemetry = Telemetry(expected=settings.expected_models)
        self.loop_watch = LoopWatch()
        self.explain = Explain(settings.explain_requests)
        self.access_log = AccessLog(
            settings.access_log,
            blocks=settings.access_log_blocks,
            people=logs.for_people(settings.log_format, STANDARD_OUTPUT),
        )
        self.index = ByteIndex(SPANS)
        self.fleet = Fleet(settings)
        policy = load_policy(settings.policy)
        by_load = load_policy("least_loaded")
        learn = settings.prefill_rate == 0
        loads = self.fleet.loads
        self.exact: ExactMode | None = None
        if settings.exact:
            # Its libraries are an extra: nothing of it is imported when it is off.
            from router.exact.mode import ExactMode

            self.exact = ExactMode(self.fleet)
        self.diagnoser: Diagnoser | None = None
        self.auditor: Auditor | None = None
        if settings.diagnosis:
            self.diagnoser = Diagnoser(
                settings.diagnosis_memory,
                lambda: self.fleet.replicas,
                text_bytes=settings.audit_text,
            )
            self.auditor = Auditor(
                lambda: self.fleet.loads, self._holds, settings.replica_hour_price
            )
            self.diagnoser.listener = self.auditor.take
        self.adapters = Adapters(self.fleet.adapters)
        self.tiers = DeviceModel(SPANS, settings.kv_tier_shared)
        self.placer = Placer(
            self.index,
            policy,
            loads,
            learn_speed=learn,
            reports=self.exact,
            adapters=self.adapters,
            tiers=self.tiers,
            tier_rates=dict(settings.kv_tier_rates),
        )
        self.balancer = Placer(self.index, by_load, loads, learn_speed=False)
        self.shadows: Shadows | None = None
        if settings.shadow_policies:
            self.shadows = Shadows(
                self.fleet,
                self.placer,
                settings.policy,
                settings.shadow_policies,
                price=settings.replica_hour_price,
            )
        policies = [policy, by_load, *(self.shadows.policies if self.shadows else ())]
        membership = _Membership(
            *(self.fleet, self.index, policies, self.explain, self.telemetry),
            *(self.adapters, self.tiers),
        )
        self.fleet.listen(membership)
        if self.shadows is not None:
            self.fleet.listen(self.shadows)
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
        if self.shadows is not None:
            told = self.placer.listener
            self.placer.listener = Listeners(told, self.shadows) if told else self.shadows
        self.tracer: Tracer | None = None
        if settings.tracing:
            self.tracer = Tracer(settings.tracing_share, self.access_log.secret)
            membership.tracer = self.tracer
        self.tenants: Tenants | None = None
        connector = redis_connector(settings) if settings.state else None
        if settings.has_tenants:
            self.tenants = Tenants(settings, connector, os.urandom(8).hex(), counter)
            if self.tenants.isolates:
                self.tenants.guard = IsolationGuard(
                    self.fleet,
                    settings.replica_api_key,
                    replica_context(settings),
                    refuses=settings.isolation_leak == "refuse",
                )
        self.overflow: Overflow | None = None
        self._budgets: SharedLedger | None = None
        """Counts overflow's money with other processes, where tenants' ledger does not."""
        if settings.overflow:
            shared = self.tenants.shared_ledger if self.tenants is not None else None
            if self.tenants is None:
                shared = self._budgets = shared_ledger(
                    settings, os.urandom(8).hex(), counter, connector
                )
            self.overflow = Overflow(
                read_targets(settings.overflow),
                settings.breaker_failures,
                settings.breaker_cooldown,
                shared,
            )
        self.engines = EngineCalls(settings)
        self.waker: Waker | None = None
        self.phase = Phase.STARTING
        self.port = 0
        """The front port, once started."""
        self.discovery = Discovery(settings, self.fleet) if settings.discovery != "off" else None
        self._collecting: asyncio.Task[None] | None = None
        self.gateway: Gateway
        self.front: Server | PickerServer
        self.admin: AdminServer

    async def start(self) -> None:
        """Listen and watch the fleet.

        Raises OSError when a port cannot be had, DiscoveryError when there is nobody to ask.
        """
        settings = self.settings
        loop = asyncio.get_running_loop()
        self.access_log.start(loop.call_later)
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
        if settings.wake_replicas:
            self.waker = Waker(self.fleet, self._wake_up)
            gateway.holding.wake = self.waker.wake
        gateway.exact = self.exact
        gateway.diagnoser = self.diagnoser
        gateway.tracer = self.tracer
        if self.tenants is not None:
            gateway.attach(self.tenants)
        if self.overflow is not None:
            gateway.overflow_to(self.overflow)
        if self.shared is not None:
            shared = self.shared
            gateway.queue.other_routers = lambda: shared.routers
            gateway.queue.sessions_shared = lambda: shared.queues_shared
            shared.share_queue(gateway.queue.queue)
        if self._picker:
            # Its libraries are an extra: nothing of it is imported when it is off.
            from router.picker.server import PickerServer

            self.front = PickerServer(gateway)
        else:
            self.front = Server(gateway)
        self.admin = self._admin()
        try:
            if self.tenants is not None:
                await self.tenants.start()
            if self._budgets is not None:
                self._budgets.start()
            if self.tracer is not None:
                self.tracer.start()
            if settings.workers == 1:
                await self.front.start()
            await self.admin.start()
            await self.fleet.start()
            if self.exact is not None:
                self.exact.start()
            if self.discovery is not None:
                self.discovery.on_objectives = gateway.queue.named
                await self.discovery.start()
            if self.shared is not None:
                self.shared.start()
            if settings.workers > 1:
                # The system gives connections to every worker that listens: one that takes the
                # place of another must not refuse what the others would have served.
                await self._fleet_known()
                await self.front.start()
        except BaseException:
            await self.stop()
            raise
        self.port = self.front.port
        garbage.settle()
        self.loop_watch.start()
        self._collecting = loop.create_task(garbage.collect_at_rest(self._busy), name="garbage")

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
                self.tenants,
                self.loop_watch,
                lambda: self.gateway.queue,
                self.diagnoser,
                self.auditor,
                self.shadows,
                self.tracer,
                self.overflow,
            ),
            explain=self.explain,
            recent=Recent(),
            index=self.index,
            adapters=self.adapters,
            engines=self.engines,
            phase=lambda: self.phase,
            console=ConsoleParts(
                index=self.index,
                settings=lambda: self.settings,
                sources=self._sources,
                build=build,
                weights=getattr(self.placer.policy, "weights", {}),
                front=self._front_url,
                queue=lambda: self.gateway.queue,
                overflow=self.overflow,
            ),
            engine_changed=self._engine_changed,
            problem=self._problem,
            state=lambda: "alone" if self.shared is None else self.shared.word,
            exact=self.exact,
            auditor=self.auditor,
            shadows=None if self.shadows is None else self.shadows.report,
            limits=self._limits,
        )
        return AdminServer(
            parts,
            settings.admin_host,
            settings.admin_port,
            key=settings.admin_key,
            hosts=settings.admin_names,
        )

    def _limits(self) -> str:
        """How limits and budgets are kept."""
        if self.tenants is not None:
            return self.tenants.problem or "ok"
        return "off" if self.overflow is None else self.overflow.problem or "ok"

    def _holds(self) -> dict[str, float | None]:
        """Replica -> seconds for which its cache keeps what is not used, as the index models it;
        None while it is not full."""
        found: dict[str, float | None] = {}
        now = monotonic()
        for replica in self.fleet.members():
            full = self.index.share(replica.slot) >= _FULL_SHARE
            oldest = self.index.room(replica.slot).oldest
            found[replica.name] = round(now - oldest, 1) if full and oldest else None
        return found

    def _front_url(self) -> str:
        """The clients' port, as this machine reaches it."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(  # noqa: S104
            self.settings.host, self.settings.host
        )
        scheme = "https" if self.settings.tls_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    def _busy(self) -> bool:
        """Whether a request is in progress."""
        return self.front.busy

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
            self.tiers.forget(rank.slot)
        if operation.changes_models:
            self.fleet.reread_models(replica)
        if operation.changes_rest:
            self.fleet.reread_rest(replica)

    async def _wake_up(self, replica: Replica) -> str:
        """Wake an engine. Returns why it could not be, empty where it was."""
        operation = OPERATIONS["wake_up"]
        (result,) = await self.engines.call([replica], operation, "", b"")
        if result.ok:
            return ""
        return result.error or f"POST /wake_up was answered {result.status}"

    def _resize(self, slot: int, tokens: int) -> None:
        self.index.resize(slot, index_weight(tokens))
        replica = self.fleet.replicas[slot]
        if replica is not None and replica.offload_tokens:
            self.tiers.resize(slot, index_weight(tokens - replica.offload_tokens), tier=True)

    async def ready(self) -> None:
        """Wait until every replica was tried once and what other routers know is loaded, so that
        the first requests find the fleet known."""
        await self._fleet_known()
        if self.shared is not None:
            await self.shared.ready(_FIRST_LOAD)
        if self.phase is Phase.STARTING:
            self.phase = Phase.SERVING

    async def _fleet_known(self) -> None:
        if self.discovery is not None:
            await self.discovery.wait_first(_FIRST_ROUND)
        await self.fleet.wait_first_round(_FIRST_ROUND)

    def adopt(self, live: dict[str, object]) -> None:
        """Take up settings that may change while it serves, and read the certificate anew.

        Raises OSError, ssl.SSLError where that does not load; everything stays as it was then.
        """
        settings = msgspec.structs.replace(self.settings, **live)
        self.front.reload_certificate()
        self.settings = settings
        self.gateway.adopt(settings)
        if isinstance(self.front, Server):
            self.front.settings_changed()
        logs.set_level(settings.log_level)
        self.access_log.share = settings.access_log
        self.access_log.start(self.gateway.loop.call_later)

    def settle(self) -> None:
        """Stopping begins: not ready any more, still serving."""
        self.phase = Phase.DRAINING
        self.front.settle()

    async def stop(self) -> None:
        """Take no more, let what is in progress finish within drain_timeout, close everything."""
        self.settle()
        if self._collecting is not None:
            self._collecting.cancel()
        self.loop_watch.stop()
        await self.front.stop()
        if self.tenants is not None:
            await self.tenants.stop()
        if self._budgets is not None:
            await self._budgets.stop()
        if self.shared is not None:
            await self.shared.stop()
        if self.discovery is not None:
            await self.discovery.stop()
        if self.exact is not None:
            await self.exact.stop()
        if self.waker is not None:
            await self.waker.stop()
        await self.fleet.stop()
        await self.admin.stop()
        if self.tracer is not None:
            await self.tracer.stop()
        # Its reader may have stopped reading: waiting for it must not stop the loop.
        await asyncio.to_thread(self.access_log.close)


async def _serve(
    settings: Settings,
    worker: Worker | None,
    reread: Reread,
    sources: Mapping[str, str],
    *,
    picker: bool,
) -> int:
    reloader = Reloader(settings, reread)
    if worker is None:
        app = App(settings, sources=sources, picker=picker)
    else:
        settings = worker.settings
        app = App(settings, worker.transport, sources, counter=worker.counter, picker=picker)
        await worker.attach()
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop.set)
    warning = descriptors.limit_warning(settings.max_connections, len(settings.engines))
    if warning:
        log.warning("%s", warning)
    try:
        await app.start()
    except OSError as exc:
        log.error("%s", cannot_listen(exc))
        return 1
    except DiscoveryError as exc:
        log.error("%s", exc)
        return 1
    attend(loop, lambda: reloader.router(app))
    where = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "grpc" if picker else "http"
    log.info(
        "warmroute listens on %s://%s:%d, admin on http://%s:%d, %d replicas, policy %s",
        scheme + "s" * bool(settings.tls_cert),
        where,
        app.port,
        settings.admin_host,
        app.admin.port,
        len(settings.engines),
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


def run(
    settings: Settings, reread: Reread, sources: Mapping[str, str], *, picker: bool = False
) -> int:
    """Run a router until SIGTERM or SIGINT. Returns the process's exit status.

    sources: where each setting that somebody gave came from.
    """
    descriptors.raise_limit()
    logs.setup(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        worker = from_environment(os.environ, settings)
        return uvloop.run(_serve(settings, worker, reread, sources, picker=picker))
    finally:
        logs.close()
