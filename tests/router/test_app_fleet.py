"""What the parts of a router are told when its fleet changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from running import running

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.config import Settings


async def test_policies_are_told_once_of_all_that_come_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App(Settings(replicas=("http://a:1",)))
    await asyncio.sleep(0)
    told: list[dict[int, str]] = []

    def members(names: Mapping[int, str]) -> None:
        told.append(dict(names))

    monkeypatch.setattr(app.placer.policy, "members", members)
    for number in range(50):
        app.fleet.add(f"http://b{number}:1")
    assert not told
    await asyncio.sleep(0)
    assert told == [app.fleet.names()]
    app.fleet.remove("http://b3:1")  # at once: its slot may be another's before this turn ends
    assert told[1:] == [app.fleet.names()]
    app.fleet.add("http://c:1")
    app.fleet.remove("http://a:1")
    await asyncio.sleep(0)
    assert told[2:] == [app.fleet.names()]


@pytest.mark.parametrize(("shared", "rests"), [(True, False), (False, False), (True, True)])
async def test_a_store_that_is_shared_outlives_an_engine(shared: bool, rests: bool) -> None:
    """Not one that sleeps: vLLM then empties the store as well."""
    settings = {"kv_offload_tokens": 10_000, "kv_tier_shared": ("STORAGE",) if shared else ()}
    async with SimulatedFleet(1) as fleet, running(fleet.urls, **settings) as app:
        body = {"model": "sim", "prompt": "Words that an engine keeps. " * 40, "max_tokens": 1}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            url = f"http://127.0.0.1:{app.port}/v1/completions"
            (await client.post(url, json=body)).raise_for_status()
            assert app.index.held(0) > 0
            replica = app.fleet.members()[0]
            read = replica.engine_at  # of what it counted
            assert await app.fleet.until(lambda: replica.engine_at > read, 20)
            replica.asleep = rests
            await fleet.replicas[0].restart()
            assert await app.fleet.until(lambda: replica.restarts == 1, 20)
            assert (app.index.held(0) > 0) is (shared and not rests)
