"""NIXL's pull handshake between simulated replicas, and each way in which it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from loadgen.replicas import NixlSettings, Replica, SimulatedFleet
from router.disaggregation import bodies
from router.disaggregation.nixl import Nixl

TEXT = "one two three four " * 40
QUICKLY = NixlSettings(lease_seconds=30.0, timeout_seconds=0.05)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 9},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 9},
    "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 9},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 9},
}
CHAT = "/v1/chat/completions"


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, nixl=QUICKLY) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=10) as made:
        yield made


async def prefill(
    client: httpx.AsyncClient, replica: Replica, path: str = CHAT
) -> bodies.Prefilled:
    """What the router reads of the answer to what the router sends."""
    body = bodies.prefill_body(json.dumps(BODIES[path]).encode(), path, Nixl().asking(""))
    answer = await client.post(replica.url + path, content=body)
    assert answer.status_code == 200
    return bodies.read_answer(answer.content)


def decode_body(path: str, params: bytes, **fields: Any) -> dict[str, Any]:
    return {**BODIES[path], **fields, "kv_transfer_params": json.loads(params)}


@pytest.mark.parametrize("path", BODIES)
async def test_both_legs(fleet: SimulatedFleet, client: httpx.AsyncClient, path: str) -> None:
    first, second = fleet.replicas
    alone = (await client.post(second.url + path, json=BODIES[path])).json()
    await client.post(second.url + "/reset_prefix_cache")
    found = await prefill(client, first, path)
    told = json.loads(found.params)
    assert (told["do_remote_prefill"], told["do_remote_decode"]) == (True, False)
    tokens = told["remote_num_tokens"]
    assert first.held_blocks == len(told["remote_block_ids"][0]) == -(-tokens // 16)
    answer = (await client.post(second.url + path, json=decode_body(path, found.params))).json()
    for name in ("choices", "content"):
        assert answer.get(name) == alone.get(name)
    usage = json.dumps(answer["usage"])
    assert (
        f'"cached_tokens": {tokens - 1}' in usage
        or f'"cache_read_input_tokens": {tokens - 1}' in usage
    )
    assert first.held_blocks == 0
    assert (await client.get(second.url + "/_sim/kv")).json()["transfers"] == 1
    said = (await client.get(second.url + "/metrics")).text
    assert f'source="external_kv_transfer"}} {float(tokens - 1)}' in said


async def test_a_lease_ends(client: httpx.AsyncClient) -> None:
    settings = NixlSettings(lease_seconds=0.05, timeout_seconds=0.05)
    async with SimulatedFleet(2, nixl=settings) as fleet:
        first, second = fleet.replicas
        found = await prefill(client, first)
        async with asyncio.timeout(5):
            await first.until(lambda it: not it.held_blocks)
        assert (await client.get(first.url + "/_sim/kv")).json()["expired"] == 1
        answer = await client.post(second.url + CHAT, json=decode_body(CHAT, found.params))
        assert answer.status_code == 500


@pytest.mark.parametrize("how", ["die", "restart", "freeze", "used"])
@pytest.mark.parametrize("path", BODIES)
async def test_what_cannot_be_fetched_is_an_error(
    fleet: SimulatedFleet, client: httpx.AsyncClient, how: str, path: str
) -> None:
    first, second = fleet.replicas
    body = decode_body(path, (await prefill(client, first, path)).params)
    if how == "used":
        assert (await client.post(second.url + path, json=body)).status_code == 200
        await client.post(second.url + "/reset_prefix_cache")
    else:
        await getattr(first, how)()
    answer = await client.post(second.url + path, json=body)
    assert answer.status_code == 500
    streamed = await client.post(second.url + path, json={**body, "stream": True})
    assert streamed.status_code == 200
    [event, *_] = streamed.text.split("\n\n")
    assert "Internal server error" in event
    assert "error" in event
    await second.until(lambda it: it.engine.kv_usage == 0.0)
    # It serves on.
    assert (await client.post(second.url + path, json=BODIES[path])).status_code == 200


async def test_a_frozen_keeper_that_thaws_in_time(client: httpx.AsyncClient) -> None:
    settings = NixlSettings(timeout_seconds=0.2)
    async with SimulatedFleet(2, nixl=settings) as fleet:
        first, second = fleet.replicas
        found = await prefill(client, first)
        await first.freeze()
        asked = asyncio.create_task(
            client.post(second.url + CHAT, json=decode_body(CHAT, found.params))
        )
        await second.until(lambda it: it.engine.kv_usage > 0.0)
        await first.clear()
        assert (await asked).status_code == 200
        assert first.held_blocks == 0


async def test_an_abort_between_the_legs_frees_the_blocks(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    """The decode engine tells the other one, whether it has begun to fetch or not."""
    first, second = fleet.replicas
    found = await prefill(client, first)
    await second.freeze()
    asked = asyncio.create_task(
        client.post(second.url + CHAT, json=decode_body(CHAT, found.params))
    )
    await second.until(lambda it: bool(it.requests))
    await second.clear()
    await second.until(lambda it: bool(it.engine.kv_usage))
    asked.cancel()
    async with asyncio.timeout(5):
        await first.until(lambda it: not it.held_blocks)
        await second.until(lambda it: not it.engine.kv_usage)


async def test_an_abort_while_it_prefills_keeps_nothing(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    first = fleet.replicas[0]
    await first.slow(1000.0)
    asked = asyncio.create_task(prefill(client, first))
    await first.until(lambda it: bool(it.engine.running))
    asked.cancel()
    await first.until(lambda it: it.metrics.finished["abort"] == 1)
    await first.clear()
    await first.until(lambda it: not it.engine.running)
    assert (first.held_blocks, first.engine.kv_usage) == (0, 0.0)


async def test_without_a_connector_the_fields_mean_nothing(client: httpx.AsyncClient) -> None:
    async with SimulatedFleet(1) as fleet:
        found = await prefill(client, fleet.replicas[0])
        assert found.params == b""
        assert (await client.get(fleet.urls[0] + "/_sim/kv")).status_code == 404


@pytest.mark.parametrize("name", ["lease_seconds", "timeout_seconds"])
def test_times_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, not 0"):
        NixlSettings(**{name: 0.0})
