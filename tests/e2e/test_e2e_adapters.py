"""LoRA adapters that real engines load when they are asked for first."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from caught_up import PATIENT

from bench.engines import engines as start_engines
from bench.gateways import Gateway, gateway
from bench.vllm import KIT, NoEngineError, find_venv

RANK = 8
NAMES = ("ada", "bob")
TENSORS = {"q_proj": (64, 64), "v_proj": (64, 32)}
"""Of the kit's model, in each of its two layers: inputs and outputs."""


def make_adapter(folder: Path, seed: int) -> None:
    """An adapter of random weights for the kit's model, as PEFT writes it."""
    rng = random.Random(seed)
    head: dict[str, Any] = {}
    data = b""
    for layer in range(2):
        for module, (inputs, outputs) in TENSORS.items():
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                count = shape[0] * shape[1]
                values = struct.pack(f"<{count}f", *(rng.gauss(0.0, 0.1) for _ in range(count)))
                head[f"{name}.lora_{part}.weight"] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [len(data), len(data) + len(values)],
                }
                data += values
    table = json.dumps(head).encode()
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(table)) + table + data)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(TENSORS),
        "bias": "none", "task_type": "CAUSAL_LM", "lora_dropout": 0.0,
        "base_model_name_or_path": str(KIT / "tiny"),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def lora_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two engines with room for one adapter each, and a resolver that finds two."""
    try:
        find_venv()
    except NoEngineError as why:
        pytest.skip(str(why))
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        make_adapter(folder / name, seed)
    with start_engines(
        2,
        MODEL=str(KIT / "tiny"),
        MAX_LEN="4096",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
        VLLM_PLUGINS="lora_filesystem_resolver",
        VLLM_LORA_RESOLVER_CACHE_DIR=str(folder),
        EXTRA=f"--enable-lora --max-loras 1 --max-lora-rank {RANK}",
    ) as started:
        yield [engine.url for engine in started]


async def ask(
    client: httpx.AsyncClient, started: Gateway, model: str, prompt: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answer, and what the router explains of it."""
    body = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    answer = await client.post(started.url + "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    name = answer.headers["x-request-id"]
    told = await client.get(f"{started.admin}/explain/{name}")
    return answer.json(), told.json()


async def test_each_adapter_stays_where_it_is_loaded(lora_urls: list[str]) -> None:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=600.0) as client,
        gateway(lora_urls, *PATIENT, "--metrics-interval", "200ms") as started,
    ):
        # No engine lists them: the first to be asked loads one, and lists it from then on.
        shared = "one two three four " * 60
        first, _ = await ask(client, started, NAMES[0], shared)
        assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        # The same prompt for another adapter finds nothing of it, and that is predicted.
        for model in (NAMES[1], "tiny"):
            other, told = await ask(client, started, model, shared)
            assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            assert told["predicted"] == 0
        listed = (await client.get(started.url + "/v1/models")).json()["data"]
        assert {card["id"] for card in listed} == {"tiny", *NAMES}
        # Prompts too short to be remembered: only the adapters can keep them apart.
        places: dict[str, set[str]] = {name: set() for name in NAMES}
        for turn in range(8):
            for name in NAMES:
                _, told = await ask(client, started, name, f"turn {turn}")
                if turn > 2:
                    places[name].add(told["replica"])
                    assert "Its LoRA adapter was loaded there." in told["why"], told
        assert all(len(each) == 1 for each in places.values()), places
        assert places[NAMES[0]] != places[NAMES[1]]
        replicas = (await client.get(started.admin + "/replicas")).json()
        assert [one["max_loras"] for one in replicas] == [1, 1]
        assert {one["name"]: one["adapters_loaded"] for one in replicas} == {
            place: [name] for name, (place,) in places.items()
        }
