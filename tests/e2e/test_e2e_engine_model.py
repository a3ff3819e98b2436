"""The model of an engine against a real one: the same requests must find the same tokens cached.

Those sent together need an engine with nothing else on its machine, since in what order they reach
its scheduler decides: one that runs already, named by E2E_ENGINE_URLS, with a KV cache of 64 to 200
blocks. docs/operate/replicas.md shows the command.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from random import Random

import httpx
import pytest
import xxhash

from bench.vllm import Engine, Given
from loadgen.engine import Engine as Model
from loadgen.engine import EngineParams, Request

REQUESTS = 200


def hashes(ids: list[int], size: int) -> list[int]:
    """Chained hashes of the full blocks."""
    out, parent = [], 1
    for end in range(size, len(ids) + 1, size):
        parent = xxhash.xxh3_64_intdigest(str(ids[end - size : end]).encode(), parent)
        out.append(parent)
    return out


class Pair:
    """A real engine and the model of it."""

    def __init__(self, client: httpx.AsyncClient, params: EngineParams, model: str) -> None:
        self.client = client
        self.model = model
        self.params = params
        self.engine = Model(params)
        self.now = 0.0

    @classmethod
    async def connect(cls, client: httpx.AsyncClient) -> Pair:
        metrics = (await client.get("/metrics")).text
        info = re.search(r"vllm:cache_config_info\{(.*?)\}", metrics)
        assert info
        size = int(re.search(r'(?<![a-z_])block_size="(\d+)"', info[1])[1])
        blocks = int(re.search(r'num_gpu_blocks="(\d+)"', info[1])[1])
        card = (await client.get("/v1/models")).json()["data"][0]
        assert (await client.post("/reset_prefix_cache")).status_code == 200
        params = EngineParams(
            block_size=size,
            num_blocks=blocks,
            max_num_seqs=32,
            max_num_batched_tokens=int(os.environ.get("E2E_ENGINE_BATCH", "2048")),
            max_model_len=card["max_model_len"],
        )
        return cls(client, params, card["id"])

    async def ask(self, ids: list[int], length: int) -> tuple[list[int], int]:
        """Send to the real engine: (the answer's ids, cached tokens)."""
        answer = await self.client.post(
            "/v1/completions",
            json={
                "model": self.model,
                "prompt": ids,
                "max_tokens": length,
                "min_tokens": length,
                "ignore_eos": True,
                "return_token_ids": True,
                "temperature": 1.0,
            },
        )
        assert answer.status_code == 200, answer.text
        body = answer.json()
        output = body["choices"][0]["token_ids"]
        assert len(output) == length
        return output, body["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def preemptions(self) -> int:
        """The real engine's count."""
        metrics = (await self.client.get("/metrics")).text
        return int(float(re.search(r"vllm:num_preemptions_total\{.*\} (\S+)", metrics)[1]))

    def predict(self, batch: list[tuple[list[int], list[int]]]) -> list[int]:
        """What the model finds cached when these (prompt, answer) pairs arrive at once."""
        size = self.params.block_size
        requests = []
        for ids, output in batch:
            keys = hashes(ids + output, size)
            full = len(ids) // size
            requests.append(Request(len(ids), len(output), keys[:full], keys[full:]))
            self.engine.add(requests[-1], self.now)
        while not self.engine.idle:
            self.now = self.engine.step().at
        return [request.cached_tokens for request in requests]


def next_prompt(rng: Random, known: list[list[int]], longest: int) -> list[int]:
    """A follow-up turn, a branch off an earlier prompt, an exact repeat, or something new."""
    fresh = [rng.randrange(10, 4000) for _ in range(rng.choice((1, 20, 33, 64, 200)))]
    kind = rng.random()
    if not known or kind < 0.2:
        prompt = fresh
    elif kind < 0.55:
        prompt = rng.choice(known[-12:]) + fresh
    elif kind < 0.75:
        whole = rng.choice(known[-30:])
        prompt = whole[: rng.randrange(1, len(whole) + 1)] + fresh
    else:
        prompt = rng.choice(known[-30:])
    return prompt[:longest]


@pytest.fixture
async def client(urls: list[str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=urls[0], timeout=300, trust_env=False) as found:
        yield found


@pytest.fixture
def alone(engines: list[Engine] | list[Given]) -> None:
    if not all(isinstance(engine, Given) for engine in engines):
        pytest.skip("what is sent together needs an engine of E2E_ENGINE_URLS on a quiet machine")


async def test_one_after_the_other(client: httpx.AsyncClient) -> None:
    pair = await Pair.connect(client)
    rng = Random(7)
    known: list[list[int]] = []
    longest = min(1400, pair.params.longest - 100)
    hits = 0
    for turn in range(REQUESTS):
        ids = next_prompt(rng, known, longest)
        length = rng.choice((1, 2, 7, 31, 32, 33, 70))
        output, cached = await pair.ask(ids, length)
        (predicted,) = pair.predict([(ids, output)])
        assert predicted == cached, f"request {turn}: {len(ids)} tokens in, {length} out"
        hits += cached > 0
        known.append(ids)
        known.append(ids + output)
    assert hits > 50
    assert pair.engine.counters.prefix_hits > 0


@pytest.mark.usefixtures("alone")
async def test_several_at_once(client: httpx.AsyncClient) -> None:
    """In what order the engine sees requests sent together is not ours to say: totals must
    agree."""
    pair = await Pair.connect(client)
    rng = Random(8)
    known: list[list[int]] = []
    real = model = same = count = 0
    for _ in range(40):
        batch = [next_prompt(rng, known, 500) for _ in range(6)]
        lengths = [rng.choice((1, 5, 33, 70)) for _ in batch]
        tasks = [pair.ask(ids, length) for ids, length in zip(batch, lengths, strict=True)]
        answers = await asyncio.gather(*tasks)
        pairs = [(ids, output) for ids, (output, _) in zip(batch, answers, strict=True)]
        predicted = pair.predict(pairs)
        for (ids, output), (_, cached), guess in zip(pairs, answers, predicted, strict=True):
            real += cached
            model += guess
            same += cached == guess
            count += 1
            known += [ids, ids + output]
    print(f"together: {same} of {count} equal; tokens cached {real}, model {model}")
    assert same / count > 0.85
    assert abs(real - model) < 0.08 * real


@pytest.mark.usefixtures("alone")
async def test_more_than_fits(client: httpx.AsyncClient) -> None:
    """Long answers to prompts that just fit: both must preempt, about as often, and still agree."""
    pair = await Pair.connect(client)
    rng = Random(9)
    size, blocks = pair.params.block_size, pair.params.num_blocks
    before = await pair.preemptions()
    real = model = same = count = 0
    shared = [rng.randrange(10, 4000) for _ in range(4 * size)]
    for _ in range(12):
        each = blocks // 8 - 4
        batch = [
            shared + [rng.randrange(10, 4000) for _ in range(each * size - rng.randrange(5))]
            for _ in range(8)
        ]
        answers = await asyncio.gather(*(pair.ask(ids, 6 * size) for ids in batch))
        pairs = [(ids, output) for ids, (output, _) in zip(batch, answers, strict=True)]
        for guess, (_, cached) in zip(pair.predict(pairs), answers, strict=True):
            real += cached
            model += guess
            same += cached == guess
            count += 1
    preempted = await pair.preemptions() - before
    predicted = pair.engine.counters.preemptions
    print(
        f"overfull: {same} of {count} equal; cached {real}, model {model}; "
        f"preemptions {preempted}, model {predicted}"
    )
    assert preempted > 0
    assert abs(predicted - preempted) <= max(3, 0.35 * preempted)
    assert same / count > 0.8
