"""A router's parts around the admin port: a real fleet, index and telemetry, without traffic."""

from __future__ import annotations

import time
from array import array
from typing import Any

import httpx

from router.admin.app import create_app
from router.admin.engines import EngineCalls, Operation
from router.admin.parts import AdminParts, ConsoleParts, Phase
from router.config import Settings
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.index import ByteIndex
from router.scheduling.adapters import Adapters
from router.telemetry.access_log import AccessLog
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.recent import Recent
from router.telemetry.record import Finished
from router.telemetry.telemetry import Telemetry

BUILD = {"version": "0", "python": "3", "policy": "p"}


class StillFleet(Fleet):
    """A fleet that is not started: replicas are ready when they are said to be."""

    def ready(self, replica: Replica) -> None:
        replica.health.good(time.monotonic())
        self._refresh(replica)


class Rooms(FleetListener):
    """Gives every replica a room in the index."""

    def __init__(self, index: ByteIndex) -> None:
        self._index = index

    def on_added(self, replica: Replica) -> None:
        self._index.add_replica(replica.slot, 1000)


class World:
    """Parts with as many replicas as there are URLs, all ready."""

    def __init__(self, *urls: str, api_key: str = "") -> None:
        settings = Settings(replicas=urls, replica_api_key=api_key)
        self.phase = Phase.SERVING
        self.changed: list[tuple[str, str, bool]] = []
        self.fleet = StillFleet(settings)
        self.index = ByteIndex(range(0, 100_000, 100))
        self.telemetry = Telemetry()
        self.explain = Explain(100)
        self.explain.members(self.fleet.names())
        self.fleet.listen(Rooms(self.index))
        for replica in self.fleet.members():
            self.fleet.ready(replica)
        self.parts = AdminParts(
            fleet=self.fleet,
            telemetry=self.telemetry,
            exposition=Exposition(self.telemetry, self.fleet, self.index, AccessLog(0.0), BUILD),
            explain=self.explain,
            recent=Recent(),
            index=self.index,
            adapters=Adapters({}),
            engines=EngineCalls(settings, timeout=5.0),
            phase=lambda: self.phase,
            console=ConsoleParts(
                index=self.index,
                settings=lambda: settings,
                sources={"replicas": "--replica"},
                build=BUILD,
                weights={"wait": 3.0},
                front=lambda: "http://127.0.0.1:1",
                queue=lambda: None,
            ),
            engine_changed=self._changed,
        )

    def _changed(self, replica: Replica, operation: Operation, emptied: bool) -> None:
        self.changed.append((replica.name, operation.path, emptied))

    def finish(self, request_id: str, slot: int = 0, **more: Any) -> None:
        """Let a request finish."""
        replica = self.fleet.replicas[slot]
        assert replica is not None
        base: dict[str, Any] = {
            "api": "chat", "model": "llama", "slot": slot, "replica": replica.name, "status": 200,
            "started": time.time(), "duration": 2.0, "prompt_tokens": 1000, "output_tokens": 100,
            "available": 900.0, "chosen": 900.0, "predicted": 896.0, "delivered": 800,
            "policy": "cache_aware", "reason": "least_cost",
            "considered": tuple((r.slot, 900.0, float(r.slot), 0.0, 0) for r in self.fleet.members()),
        }  # fmt: skip
        done = Finished(request_id, **{**base, **more})
        self.telemetry.observe(done)
        self.explain.add(done)

    def engine_told(self, slot: int, **numbers: Any) -> None:
        """A reading of a replica's metrics."""
        replica = self.fleet.replicas[slot]
        assert replica is not None
        replica.engine = EngineMetrics(**numbers)
        replica.engine_at = time.monotonic()

    def hold(self, slot: int, blocks: int) -> None:
        """Let the index believe that a replica holds so many blocks of 100 bytes."""
        self.index.record(slot, array("Q", range(slot * 1000 + 1, slot * 1000 + 1 + blocks)), 1.0)

    def client(self, peer: str = "127.0.0.1", **guard: Any) -> httpx.AsyncClient:
        """A client of the app, without a socket."""
        app = create_app(self.parts, **{"bound": "127.0.0.1", **guard})
        transport = httpx.ASGITransport(app=app, client=(peer, 50000))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090")


CHANGE = {"x-warmroute-admin": "1"}
"""What a change must carry."""
