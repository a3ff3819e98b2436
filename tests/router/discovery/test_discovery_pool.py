"""Replicas by an InferencePool: its selector and its ports, and what changes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from api_server import ApiServer
from discovery_world import PODS, StartDiscovery, names, pod, until, until_names

from router.config import Settings
from router.http.queueing import RequestQueue
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.queue.classes import Hints
from router.scheduling.placer import Placer

POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/llm/inferencepools"
OBJECTIVES = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/llm/inferenceobjectives"
SETTINGS: dict[str, Any] = {"discovery": "kubernetes", "discovery_pool": "vllm"}


def pool(*ports: int, name: str = "vllm", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": "llm"},
        "spec": {
            "selector": {"matchLabels": labels},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "warmroute", "port": {"number": 9002}},
        },
        "status": {"parents": [{"conditions": [{"type": "Accepted", "status": "True"}]}]},
    }


async def test_the_pods_of_a_pool_on_each_of_its_ports(
    api: ApiServer, start: StartDiscovery
) -> None:
    api.put(PODS, pod("a", "10.0.0.1"))
    api.put(PODS, pod("b", "10.0.0.2"))
    api.put(POOLS, pool(8000, 8001, app="vllm", tier="gpu"))
    discovery, fleet = await start(**SETTINGS)
    await until_names(fleet, [f"10.0.0.{n}:{port}" for n in (1, 2) for port in (8000, 8001)])
    assert discovery.current
    asked = [(path, options) for verb, path, options in api.requests if verb == "list"]
    pools = [options for path, options in asked if path == POOLS]
    assert [options["fieldSelector"] for options in pools] == ["metadata.name=vllm"]
    pods = [options for path, options in asked if path == PODS]
    assert [options["labelSelector"] for options in pods] == ["app=vllm,tier=gpu"]


async def test_a_pool_that_changes(api: ApiServer, start: StartDiscovery) -> None:
    api.put(PODS, pod("a", "10.0.0.1"))
    api.put(POOLS, pool(8000, app="vllm"))
    _, fleet = await start(**SETTINGS)
    await until_names(fleet, ["10.0.0.1:8000"])
    await api.until(lambda: {PODS, POOLS} <= {w.path for w in api.watchers})
    # Another port of the same pods.
    api.put(POOLS, pool(9000, app="vllm"))
    await until_names(fleet, ["10.0.0.1:9000"])
    # Other pods: a new list is asked for, and the old watch ends.
    api.put(POOLS, pool(9000, app="other"))
    others = ("list", PODS, "app=other")
    await api.until(lambda: others in [(v, p, o.get("labelSelector")) for v, p, o in api.requests])
    api.put(PODS, pod("b", "10.0.0.2"))
    await until_names(fleet, ["10.0.0.1:9000", "10.0.0.2:9000"])


async def test_a_pool_that_is_not_there(api: ApiServer, start: StartDiscovery) -> None:
    api.put(PODS, pod("a", "10.0.0.1"))
    api.put(POOLS, pool(8000, name="another", app="other"))
    discovery, fleet = await start(**SETTINGS)
    await until(lambda: "does not exist" in discovery.problem)
    assert discovery.problem == "InferencePool llm/vllm does not exist"
    await api.until(lambda: POOLS in {w.path for w in api.watchers})
    api.put(POOLS, pool(8000, app="vllm"))
    await until_names(fleet, ["10.0.0.1:8000"])
    await until(lambda: not discovery.problem)
    # Gone again: the last known replicas stay.
    api.delete(POOLS, "vllm")
    await until(lambda: discovery.problem)
    assert names(fleet) == ["10.0.0.1:8000"]


async def test_a_right_that_is_lacking_is_named(api: ApiServer, start: StartDiscovery) -> None:
    api.forbidden = frozenset({"list"})
    discovery, _ = await start(**SETTINGS)
    await until(lambda: "may not list" in discovery.problem)
    for word in ("inferencepools", "inference.networking.k8s.io", "Role"):
        assert word in discovery.problem


def objective(name: str, priority: int | None, pool: str = "vllm") -> dict[str, Any]:
    spec: dict[str, Any] = {"poolRef": {"group": "inference.networking.k8s.io", "name": pool}}
    if priority is not None:
        spec["priority"] = priority
    return {"metadata": {"name": name, "namespace": "llm"}, "spec": spec}


async def test_the_objectives_of_a_pool_are_priorities(
    api: ApiServer, start: StartDiscovery
) -> None:
    api.put(POOLS, pool(8000, app="vllm"))
    for item in (objective("chat", 100), objective("usual", None), objective("night", -5)):
        api.put(OBJECTIVES, item)
    api.put(OBJECTIVES, objective("of-another", 7, pool="other"))
    discovery, fleet = await start(**SETTINGS)
    settings = Settings(queue_trust_clients=True, queue_objectives="own=low,night=high")
    placer = Placer(ByteIndex(SPANS), load_policy("least_loaded"), fleet.loads)
    queue = RequestQueue(settings, fleet, placer, asyncio.get_running_loop())
    told: list[dict[str, int]] = []

    def named(priorities: Mapping[str, int]) -> None:
        told.append(dict(priorities))
        queue.named(priorities)

    discovery.on_objectives = named
    await until(lambda: told and told[-1] == {"chat": 100, "usual": 0, "night": -5})

    def priority(name: bytes) -> int:
        return queue._classify(Hints(objective=name), None, None).priority

    assert [priority(name) for name in (b"chat", b"usual", b"night", b"own")] == [-1, 0, 1, 1]
    await api.until(lambda: OBJECTIVES in {w.path for w in api.watchers})
    api.delete(OBJECTIVES, "chat")
    await until(lambda: "chat" not in told[-1])
    assert priority(b"chat") == 0


async def test_a_cluster_without_objectives(api: ApiServer, start: StartDiscovery) -> None:
    """Their definition is not everywhere: that keeps nothing from working."""
    api.put(PODS, pod("a", "10.0.0.1"))
    api.put(POOLS, pool(8000, app="vllm"))
    api.unknown = frozenset({OBJECTIVES})
    discovery, fleet = await start(**SETTINGS)
    await until_names(fleet, ["10.0.0.1:8000"])
    await until(lambda: discovery._noted)
    assert not discovery.problem
