"""Engines with a store behind their GPU memory, which LMCache's server keeps for both."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from caught_up import PATIENT, WAIT_SECONDS, CaughtUp

from bench.engines import SMALL
from bench.engines import engines as start_engines
from bench.gateways import Gateway, gateway
from bench.vllm import LMCACHE_CHUNK, Engine, LMCache, NoEngineError, metrics_of

MEDIUM = "STORAGE"
FLAGS = (*PATIENT, "--exact", "--kv-tier-shared", MEDIUM, "--kv-offload-tokens", "100000")
WORDS = 600
"""About 2,600 tokens: half of what an engine has room for."""
GUESS = 0.8
"""The least part of what the store delivers that is predicted: what it holds is believed in blocks
of bytes, of which the last one is not whole."""


@pytest.fixture(scope="module")
def stored() -> Iterator[list[Engine]]:
    """Two engines with one store."""
    try:
        store = LMCache(gigabytes=0.2)
    except NoEngineError as why:
        pytest.skip(str(why))
    try:
        store.start()
        with start_engines(2, **SMALL, **store.settings()) as engines:
            yield engines
    finally:
        store.close()


def text() -> str:
    return " ".join(secrets.token_hex(2) for _ in range(WORDS))


class World:
    """A gateway before the two, which says what it believed of each request."""

    def __init__(self, started: Gateway, engines: list[Engine], caught_up: CaughtUp) -> None:
        self._started = started
        self._names = [engine.url.removeprefix("http://") for engine in engines]
        self._caught_up = caught_up
        self._client = httpx.AsyncClient(trust_env=False, timeout=WAIT_SECONDS)

    async def ask(self, slot: int, prompt: str) -> dict[str, Any]:
        """Send a prompt to one of the replicas. Returns what /explain says, when the gateway knows
        what the engine has told."""
        admin = self._started.admin
        await self._change(slot, "undrain")
        await self._change(1 - slot, "drain")
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0}
        answer = await self._client.post(self._started.url + "/v1/completions", json=body)
        answer.raise_for_status()
        request = answer.headers["x-request-id"]
        told: dict[str, Any] = (await self._client.get(f"{admin}/explain/{request}")).json()
        assert told["replica"] == self._names[slot]
        await self._caught_up(told["replica"])
        return told

    async def _change(self, slot: int, what: str) -> None:
        url = f"{self._started.admin}/replicas/{self._names[slot]}/{what}"
        done = await self._client.post(url, headers={"x-warmroute-admin": "1"})
        done.raise_for_status()

    async def restarted(self, slot: int) -> None:
        """Wait until the gateway has seen that an engine restarted, and uses it again."""
        await self._change(slot, "undrain")
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                told = (await self._client.get(self._started.admin + "/replicas")).json()
                one = next(one for one in told if one["name"] == self._names[slot])
                if one["restarts"] and one["usable"] and one["exact"]:
                    return
                await asyncio.sleep(0.1)


def assert_loaded(told: dict[str, Any]) -> None:
    """All whole chunks came from the store, and that was predicted."""
    (tier,) = told["tiers"]
    assert tier["medium"] == MEDIUM
    assert told["delivered"] >= (told["prompt_tokens"] - 1) // LMCACHE_CHUNK * LMCACHE_CHUNK > 0
    assert GUESS * told["delivered"] < told["predicted"] <= told["delivered"]


async def test_a_store_that_engines_share_delivers_what_was_predicted(
    stored: list[Engine],
) -> None:
    urls = [engine.url for engine in stored]
    async with gateway(urls, *FLAGS) as started, CaughtUp(started, urls) as caught_up:
        world = World(started, stored, caught_up)
        prompt = text()
        first = await world.ask(0, prompt)
        assert (first["predicted"], first["delivered"]) == (0, 0)
        here = await world.ask(0, prompt)
        assert here["predicted"] == here["delivered"] > 0
        assert not here.get("tiers")
        alone = text()
        for each in (alone, text(), text()):
            await world.ask(0, each)
        # Evicted from GPU memory; and what one engine has computed, the other one loads.
        assert_loaded(await world.ask(0, prompt))
        assert_loaded(await world.ask(1, prompt))
        page = await metrics_of(started.admin)
        found = re.findall(rf'^warmroute_tier_predicted_.*"{MEDIUM}"}} (\S+)$', page, re.MULTILINE)
        assert len(found) == 2
        # The store is there when the engine restarts with an empty GPU memory.
        stored[0].kill()
        stored[0].start()
        await asyncio.to_thread(stored[0].wait)
        await world.restarted(0)
        assert_loaded(await world.ask(0, alone))
