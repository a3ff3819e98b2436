"""Connectors beside NIXL's pull mode, on real engines."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from caught_up import PATIENT

from bench.gateways import gateway
from bench.vllm import (
    Engine,
    NoEngineError,
    find_nixl,
    find_venv,
    metrics_of,
    nixl_settings,
    store_settings,
)

# Each prompt is prefilled elsewhere: a local prefill at this speed would take minutes.
FLAGS = (*PATIENT, "--prefill-rate", "2000")
REQUESTS = 4


@pytest.fixture(params=["store", "nixl_push"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Engine, Engine]]:
    """A connector's name, an engine that prefills, and one that decodes."""
    name: str = request.param
    engines = []
    try:
        venv = find_venv()
        for role in ("kv_producer", "kv_consumer"):
            settings = (
                store_settings(tmp_path)
                if name == "store"
                else nixl_settings(find_nixl(), role, "NixlPushConnector")
            )
            engines.append(Engine(venv, **settings))
    except NoEngineError as why:
        pytest.skip(str(why))
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.wait()
        yield name, engines[0], engines[1]
    finally:
        for engine in engines:
            engine.close()


async def count(url: str, series: str) -> float:
    """A counter of a metrics page."""
    found = re.search(rf"^{series} (\S+)$", await metrics_of(url), re.MULTILINE)
    return float(found[1]) if found is not None else 0.0


async def test_both_legs_answer_as_one_engine_does(pair: tuple[str, Engine, Engine]) -> None:
    name, prefill, decode = pair
    flags = ("--prefill", prefill.url, "--kv-connector", name, *FLAGS)
    async with (
        gateway([decode.url], *flags) as started,
        httpx.AsyncClient(trust_env=False, timeout=240.0) as client,
    ):

        async def ask(url: str, prompt: str, **fields: object) -> httpx.Response:
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0, **fields}
            return await client.post(url + "/v1/completions", json=body)

        # The decode engine is busy, so that prompts are prefilled elsewhere.
        busy = {"model": "tiny", "prompt": "x", "max_tokens": 20_000, "ignore_eos": True}
        async with client.stream(
            "POST", started.url + "/v1/completions", json={**busy, "stream": True}
        ) as stream:
            lines = stream.aiter_lines()
            await anext(lines)
            for number in range(REQUESTS):
                prompt = " ".join(secrets.token_hex(2) for _ in range(400))
                headers_of_one = {"x-request-id": "same"}
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0}
                answer = await client.post(
                    started.url + "/v1/completions", json=body, headers=headers_of_one
                )
                assert answer.status_code == 200, answer.text
                told = await count(
                    started.admin, r'warmroute_prefill_legs_total\{outcome="handed_over"\}'
                )
                assert told == number + 1
                alone = (await ask(prefill.url, prompt)).json()
                assert answer.json()["choices"][0]["text"] == alone["choices"][0]["text"]
        hits = await count(decode.url, r"vllm:external_prefix_cache_hits_total{[^}]*}")
        assert hits > 1000
        failed = await count(started.admin, r'warmroute_prefill_legs_total\{outcome="not_loaded"\}')
        assert failed == 0
