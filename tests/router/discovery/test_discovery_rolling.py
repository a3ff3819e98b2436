"""A gateway that finds its replicas in Kubernetes, while these are exchanged under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from api_server import ApiServer, endpoint, endpoint_slice
from discovery_world import SLICES, StartDiscovery, until, until_names

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.config import Settings

REPLICAS = 8


@pytest.fixture
async def app(api: ApiServer) -> AsyncIterator[App]:
    settings = Settings(
        discovery="kubernetes",
        discovery_services=("vllm",),
        port=0,
        admin_port=0,
        access_log=0.0,
        health_interval=0.2,
        slow_start=0.0,
        settle_time=0.0,
        drain_timeout=5.0,
    )
    app = App(settings)
    await app.start()
    yield app
    await app.stop()


def publish(api: ApiServer, url: str, **conditions: Any) -> None:
    port = httpx.URL(url).port
    assert port is not None
    # One slice for each: here they differ by port, in a cluster by address.
    each = endpoint(url, uid=f"uid-{port}", **conditions)
    api.put(SLICES, endpoint_slice(f"vllm-{port}", [each], port=port))


async def test_a_rolling_update_under_load_loses_no_request(api: ApiServer, app: App) -> None:
    """Each old pod refuses connections from the moment it is told to end, as a server that shuts
    down does, which is before the gateway can know of it."""
    async with SimulatedFleet(REPLICAS) as old, SimulatedFleet(REPLICAS) as new:
        for url in old.urls:
            publish(api, url)
        await app.ready()
        fleet = app.fleet
        assert await fleet.until(lambda: fleet.usable.bit_count() == REPLICAS, 30)
        answers: list[tuple[int, bool]] = []
        done = asyncio.Event()
        base = f"http://127.0.0.1:{app.port}"

        async def client(number: int) -> None:
            async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as http:
                turn = 0
                while not done.is_set():
                    turn += 1
                    answer = await http.post(
                        "/v1/chat/completions",
                        json={
                            "model": "sim",
                            "stream": True,
                            "max_tokens": 20,
                            "messages": [{"role": "user", "content": f"{number} " * 50 * turn}],
                        },
                    )
                    answers.append((answer.status_code, answer.text.endswith("[DONE]\n\n")))

        async with asyncio.TaskGroup() as clients:
            for number in range(4):
                clients.create_task(client(number))
            for leaver, newcomer in zip(old.replicas, new.replicas, strict=True):
                publish(api, newcomer.url)
                assert await fleet.until(lambda newcomer=newcomer: takes(app, newcomer.url), 30)
                await leaver.refuse()
                publish(api, leaver.url, ready=False, terminating=True)
                await until(lambda leaver=leaver: gone(app, leaver.url))
                await leaver.die()
                api.delete(SLICES, f"vllm-{httpx.URL(leaver.url).port}")
            served = len(answers)
            await until(lambda: len(answers) >= served + 20)
            done.set()
    assert len(answers) > 40
    assert set(answers) == {(200, True)}
    assert sorted(r.url for r in fleet.members()) == sorted(new.urls)


def takes(app: App, url: str) -> bool:
    """Whether it is sent requests."""
    return any(r.url == url and app.fleet.usable & r.bit for r in app.fleet.members())


def gone(app: App, url: str) -> bool:
    return all(replica.url != url for replica in app.fleet.members())


async def test_readiness_tells_what_keeps_replicas_from_being_found(
    api: ApiServer, app: App
) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        admin = f"http://127.0.0.1:{app.admin.port}"
        assert app.discovery is not None
        await app.discovery.wait_first(10)
        api.forbidden = frozenset({"watch", "list"})
        api.end_watches()
        discovery = app.discovery
        await until(lambda: not discovery.current)
        answer = await http.get(f"{admin}/readyz")
        assert answer.status_code == 503
        assert "may not watch endpointslices in namespace llm" in answer.text
        metrics = (await http.get(f"{admin}/metrics")).text
        assert "warmroute_discovery_current 0" in metrics


async def test_many_changes_cost_little(api: ApiServer, start: StartDiscovery) -> None:
    """500 endpoints in slices of 100, of which one changes 20 times a second: CPU seconds of the
    whole process, this server included. Reading all endpoints for each change would take far more."""
    groups = [
        [endpoint(f"http://10.0.{group}.{number}") for number in range(100)] for group in range(5)
    ]
    for number, group in enumerate(groups):
        api.put(SLICES, endpoint_slice(f"vllm-{number}", group))
    _, fleet = await start(discovery="kubernetes", discovery_services=("vllm",))
    assert await fleet.until(lambda: len(fleet.members()) == 500, 30)
    await api.until(lambda: api.watchers)
    changes = 100
    before = time.process_time()
    for turn in range(changes):
        group = groups[turn % 5]
        group[turn % 100]["conditions"]["ready"] = turn % 2 == 1
        api.put(SLICES, endpoint_slice(f"vllm-{turn % 5}", group))
        await asyncio.sleep(0.005)
    api.put(SLICES, endpoint_slice("vllm-end", [endpoint("http://10.9.9.9")]))
    assert await fleet.until(lambda: len(fleet.members()) == 501, 30)
    cost = (time.process_time() - before) / changes
    print(f"a change of a slice of 100 among 500 endpoints: {cost * 1e3:.2f} ms of CPU")
    # About 4 ms on a quiet machine: a tenth of a core at 20 a second.
    assert cost < 0.02
    await until_names(fleet, [replica.name for replica in fleet.members()])
