"""Replicas that speak as SGLang and TensorRT-LLM."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from loadgen.replicas import SimulatedFleet
from router.fleet.engines import ENGINES, kind_by_metrics, kind_by_owners

TEXT = "word " * 600
CHAT = {"model": "sim", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 2}
MESSAGES = {**CHAT, "system": "s"}
BILLING = "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch="


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(3, engines=("vllm", "sglang", "trtllm")) as running:
        yield running


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        yield http


async def test_each_is_known_for_its_engine(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    for url, kind in zip(fleet.urls, ENGINES, strict=True):
        for _ in range(2):
            assert (await client.post(url + "/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.get(url + "/health")).status_code == 200
        cards = (await client.get(url + "/v1/models")).json()["data"]
        assert kind_by_owners(card["owned_by"] for card in cards) is kind
        text = (await client.get(url + kind.metrics_paths[0])).content
        assert kind_by_metrics(text) is kind
        told = kind.parse_metrics(text)
        assert (told.running, told.waiting, told.kv_usage) == (0, 0, 0)
        assert (told.kv_tokens or 0) > 60_000
        assert told.block_tokens == 16
        assert told.hit_rate == pytest.approx(0.5, abs=0.02)
        assert told.prompts == 2


async def test_trtllm_tells_its_iterations(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    _, _, replica = fleet.replicas
    assert (await client.get(replica.url + "/metrics")).json() == []
    await replica.slow(1000.0)
    body = {**CHAT, "stream": True}
    async with client.stream("POST", replica.url + "/v1/chat/completions", json=body):
        (iteration,) = (await client.get(replica.url + "/metrics")).json()
    assert iteration["numActiveRequests"] + iteration["numQueuedRequests"] == 1
    assert iteration["kvCacheStats"]["tokensPerBlock"] == 16


async def test_usage_is_told_as_each_engine_does(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    for url in fleet.urls:
        told = []
        for _ in range(2):
            usage = (await client.post(url + "/v1/chat/completions", json=CHAT)).json()["usage"]
            told.append(usage["prompt_tokens_details"]["cached_tokens"])
        assert told[0] == 0 < told[1]
    sglang = fleet.urls[1]
    for path, body, name in (
        ("/v1/messages", MESSAGES, "cache_read_input_tokens"),
        ("/v1/responses", {"model": "sim", "input": "anew " + TEXT}, "input_tokens_details"),
    ):
        first, again = [(await client.post(sglang + path, json=body)).json() for _ in range(2)]
        assert not first["usage"].get(name)
        assert again["usage"][name]


async def test_the_choices_of_sglang_have_its_own_fields(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    url = fleet.urls[1] + "/v1/chat/completions"
    (choice,) = (await client.post(url, json=CHAT)).json()["choices"]
    assert choice["matched_stop"] is None
    assert not {"stop_reason", "token_ids"} & choice.keys()
    answer = await client.post(url, json={**CHAT, "stream": True})
    assert b"matched_stop" in answer.content
    assert b"fingerprint" not in answer.content
    assert answer.content.endswith(b"data: [DONE]\n\n")
    refused = await client.post(url, json={**CHAT, "model": "other"})
    assert (refused.status_code, refused.json()["object"]) == (404, "error")


async def test_generate_of_sglang(fleet: SimulatedFleet, client: httpx.AsyncClient) -> None:
    url = fleet.urls[1] + "/generate"
    body = {"text": TEXT, "sampling_params": {"max_new_tokens": 3}}
    whole = (await client.post(url, json=body)).json()
    assert whole["meta_info"]["completion_tokens"] == 3
    assert whole["meta_info"]["finish_reason"] == {"type": "length", "length": 3}
    answer = await client.post(url, json={**body, "stream": True})
    *events, done = answer.text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    assert len(events) == 3
    assert whole["text"] in events[-1]
    assert whole["text"] not in events[0]
    assert (await client.post(fleet.urls[0] + "/generate", json=body)).status_code == 404


async def test_sglang_renders_the_billing_line_and_knows_no_salt_of_messages(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    async def cached(url: str, mark: str, salt: str) -> int:
        system = [{"type": "text", "text": BILLING + mark}, {"type": "text", "text": "you are"}]
        body = {**MESSAGES, "system": system, "cache_salt": salt}
        usage = (await client.post(url + "/v1/messages", json=body)).json()["usage"]
        return int(usage.get("cache_read_input_tokens", 0))

    vllm, sglang, _ = fleet.urls
    assert [await cached(vllm, mark, "a") > 0 for mark in ("11111;", "22222;")] == [False, True]
    assert [await cached(sglang, mark, "a") > 300 for mark in ("11111;", "22222;")] == [False] * 2
    assert await cached(vllm, "22222;", "b") == 0
    assert await cached(sglang, "22222;", "b") > 300


async def test_each_has_its_own_control_paths(
    fleet: SimulatedFleet, client: httpx.AsyncClient
) -> None:
    vllm, sglang, trtllm = fleet.urls
    assert (await client.post(sglang + "/flush_cache")).status_code == 200
    assert (await client.get(sglang + "/server_info")).json()["enable_cache_report"] is True
    assert (await client.post(sglang + "/load_lora_adapter", json={"lora_name": "a"})).is_success
    assert fleet.replicas[1].adapters == ["a"]
    for url, path in (
        (vllm, "/flush_cache"),
        (sglang, "/reset_prefix_cache"),
        (sglang, "/kv_event_sources"),
        (trtllm, "/v1/messages"),
        (trtllm, "/tokenize"),
    ):
        assert (await client.post(url + path, json={})).status_code == 404


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="engine must be one of vllm, sglang, trtllm"):
        SimulatedFleet(1, engines=("ollama",))
    with pytest.raises(ValueError, match="one for each of 3"):
        SimulatedFleet(3, engines=("vllm", "sglang"))
    with pytest.raises(ValueError, match="KV events are simulated for vllm only"):
        SimulatedFleet(1, engines=("sglang",), kv_events_port=0)
