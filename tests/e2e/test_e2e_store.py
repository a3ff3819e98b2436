"""Engines that share a store of KV blocks, over vLLM's ExampleConnector and a folder."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from caught_up import PATIENT

from bench.engines import engines as start_engines
from bench.gateways import gateway
from bench.vllm import Engine, NoEngineError, find_venv, metrics_of, store_settings

# A speed that is set: what a busy machine makes learn would decide where prompts are prefilled.
FLAGS = (*PATIENT, "--kv-connector", "store", "--prefill-rate", "2000")
REQUESTS = 4
PATH = "/v1/completions"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Engine]]:
    """An engine that prefills, and one that decodes."""
    try:
        find_venv()
    except NoEngineError as why:
        pytest.skip(str(why))
    with start_engines(2, **store_settings(tmp_path)) as started:
        yield started


async def count(url: str, series: str) -> float:
    """A counter of a metrics page."""
    found = re.search(rf"^{series} (\S+)$", await metrics_of(url), re.MULTILINE)
    return float(found[1]) if found is not None else 0.0


async def test_both_legs_answer_as_one_engine_does(pair: list[Engine]) -> None:
    prefill, decode = pair
    async with (
        gateway([decode.url], "--prefill", prefill.url, *FLAGS) as started,
        httpx.AsyncClient(trust_env=False, timeout=240.0) as client,
    ):
        # The decode engine is busy, so that prompts are prefilled elsewhere.
        busy = {"model": "tiny", "prompt": "x", "max_tokens": 20_000, "ignore_eos": True}
        url = started.url + PATH
        async with client.stream("POST", url, json={**busy, "stream": True}) as stream:
            lines = stream.aiter_lines()  # kept: at its end the stream would be closed
            await anext(lines)
            for _ in range(REQUESTS):
                prompt = " ".join(secrets.token_hex(2) for _ in range(400))
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0}
                answer = await client.post(url, json=body)
                assert answer.status_code == 200, answer.text
                alone = await client.post(prefill.url + PATH, json=body)
                assert answer.json()["choices"][0]["text"] == alone.json()["choices"][0]["text"]
        # A machine that was busy during the first may have made the others cheaper where they are.
        legs = r'warmroute_prefill_legs_total\{outcome="handed_over"\}'
        handed = await count(started.admin, legs)
        assert handed >= 1
        # About three tokens a word came from the store.
        hits = await count(decode.url, r"vllm:external_prefix_cache_hits_total{[^}]*}")
        assert hits > handed * 800
