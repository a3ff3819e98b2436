"""What the tests of discovery share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from router.discovery import Discovery
from router.fleet.fleet import Fleet

SLICES = "/apis/discovery.k8s.io/v1/namespaces/llm/endpointslices"
PODS = "/api/v1/namespaces/llm/pods"

StartDiscovery = Callable[..., Awaitable[tuple[Discovery, Fleet]]]


def names(fleet: Fleet) -> list[str]:
    return sorted(replica.name for replica in fleet.members())


async def until_names(fleet: Fleet, expected: Sequence[str]) -> None:
    """Wait until these are the members."""
    assert await fleet.until(lambda: names(fleet) == sorted(expected), 30), names(fleet)


async def until(condition: Callable[[], object], within: float = 30.0) -> None:
    """Wait until something is so that nobody tells of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def pod(name: str, ip: str, **changes: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "llm", "uid": f"uid-{ip}", "labels": {"model": "qwen"}}
    metadata |= changes.pop("metadata", {})
    return {
        "metadata": metadata,
        "spec": {
            "containers": [
                {"name": "vllm", "ports": [{"name": "api", "containerPort": 8000}]},
                {"name": "side", "ports": [{"name": "metrics", "containerPort": 9}]},
            ]
        },
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [{"type": "Ready", "status": changes.pop("ready", "True")}],
        },
    }
