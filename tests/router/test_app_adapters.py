"""A router before simulated engines that load LoRA adapters when they are asked for first."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from running import running

from loadgen.engine import EngineParams
from loadgen.replicas import SimulatedFleet

PARAMS = EngineParams(max_loras=1, lora_load_seconds=0.02, step_base_seconds=0.001)


async def ask(client: httpx.AsyncClient, url: str, model: str, tokens: int = 1) -> str:
    """Returns the request's id."""
    body = {"model": model, "prompt": "hi", "max_tokens": tokens, "stream": True}
    answer = await client.post(url + "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-request-id"]


async def test_an_adapter_nobody_lists_is_loaded_and_then_stays() -> None:
    names = ("ada", "bob")
    async with (
        SimulatedFleet(2, params=PARAMS, resolves=names) as fleet,
        running(fleet.urls, metrics_interval=0.05) as app,
        httpx.AsyncClient(trust_env=False, timeout=30.0) as client,
    ):
        url, admin = f"http://127.0.0.1:{app.port}", f"http://127.0.0.1:{app.admin.port}"
        stories: list[dict[str, Any]] = []
        for name in names * 3:
            made = await ask(client, url, name)
            story = (await client.get(f"{admin}/explain/{made}")).json()
            stories.append(story)
            await app.fleet.until(lambda name=name: app.fleet.serving(name) == 0b11, 10.0)
        # Both engines are taken to load it. Where both adapters came to one replica, the one that
        # had to go is loaded in the other one, which has a place; then each goes on where it is.
        for later in stories[4:]:
            assert later["replica"] == stories[names.index(later["model"]) + 2]["replica"]
            assert "Its LoRA adapter was loaded there." in later["why"]
        assert stories[2]["replica"] != stories[3]["replica"]
        chosen = {one["chosen"]: one["adapter"] for one in stories[-1]["candidates"]}
        assert chosen == {True: "loaded", False: "to be loaded"}
        assert sum(each.engine.adapters.loads for each in fleet.replicas) <= 3
        told = (await client.get(admin + "/replicas")).json()
        assert {one["name"]: one["adapters_loaded"] for one in told} == {
            story["replica"]: [story["model"]] for story in stories[2:]
        }
        assert {one["max_loras"] for one in told} == {1}


async def test_what_others_send_is_seen_in_the_metrics() -> None:
    async with (
        SimulatedFleet(2, params=PARAMS, adapters=("ada",)) as fleet,
        running(fleet.urls, metrics_interval=0.05) as app,
        httpx.AsyncClient(trust_env=False, timeout=30.0) as client,
    ):
        slot = app.fleet.find(fleet.urls[1]).slot
        asked = asyncio.create_task(ask(client, fleet.urls[1], "ada", 5000))
        await app.fleet.until(lambda: app.adapters.with_requests(slot) == ["ada"], 10.0)
        asked.cancel()
        await app.fleet.until(lambda: not app.adapters.with_requests(slot), 10.0)
        assert app.adapters.loaded(slot) == ["ada"]


async def test_the_last_adapter_of_a_fleet_that_is_unloaded_is_forgotten() -> None:
    async with (
        SimulatedFleet(1, params=PARAMS, adapters=("ada",)) as fleet,
        running(fleet.urls) as app,
        httpx.AsyncClient(trust_env=False, timeout=30.0) as client,
    ):
        replica = app.fleet.find(fleet.urls[0])
        assert app.adapters.loaded(replica.slot) == ["ada"]
        body = {"lora_name": "ada"}
        answer = await client.post(fleet.urls[0] + "/v1/unload_lora_adapter", json=body)
        assert answer.status_code == 200
        app.fleet.reread_models(replica)
        assert await app.fleet.until(lambda: not app.fleet.adapters, 10.0)
        assert await app.fleet.until(lambda: not app.adapters.loaded(replica.slot), 2.0)
