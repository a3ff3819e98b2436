"""Measures a live engine: prompts of token ids over /v1/completions, as vLLM takes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadgen.calibrate.fit import Decoding, Prefilling
from loadgen.engine import EngineParams

LOWEST_ID, HIGHEST_ID = 10, 2000
"""Token ids asked with: within every vocabulary, above the usual special ones."""
REPEATS = 5
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Prompts' lengths as shares of the longest."""
CONCURRENCIES = (1, 2, 4, 8, 16)
DECODED = 48
"""Tokens of the answers that decoding is measured with."""


class ProbeError(RuntimeError):
    """The engine does not answer as vLLM does."""


class Answered(msgspec.Struct, frozen=True):
    """One request's times, in seconds of ``time.perf_counter``."""

    sent: float
    first: float
    last: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class Probe:
    """An engine under measurement. Nothing else should use it meanwhile."""

    def __init__(self, client: httpx.AsyncClient, model: str, known: EngineParams) -> None:
        self._client = client
        self._model = model
        self._random = Random(0)
        self.known = known
        """Block size, blocks and limits; its rates mean nothing."""

    @classmethod
    async def connect(cls, client: httpx.AsyncClient, *, batched_tokens: int) -> Probe:
        """Ask the engine what it is. Raises ProbeError and httpx.HTTPError."""
        text = (await client.get("/metrics")).text
        info = {
            name: value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vllm:cache_config_info"
            for name, value in sample.labels.items()
        }
        cards = (await client.get("/v1/models")).json().get("data", [])
        if "block_size" not in info or not cards:
            raise ProbeError(
                "no vllm:cache_config_info in /metrics, or no model in /v1/models: calibrate "
                "needs the URL of a vLLM engine itself, not of a gateway"
            )
        size, blocks = int(info["block_size"]), int(info["num_gpu_blocks"])
        known = EngineParams(
            name="calibrated",
            origin=f"fitted to {cards[0]['id']} at {client.base_url}",
            block_size=size,
            num_blocks=blocks,
            max_num_batched_tokens=batched_tokens,
            max_model_len=min(cards[0].get("max_model_len") or 131_072, (blocks - 1) * size),
        )
        return cls(client, cards[0]["id"], known)

    def prompt(self, tokens: int) -> list[int]:
        """Token ids never sent before."""
        return self._random.choices(range(LOWEST_ID, HIGHEST_ID), k=tokens)

    async def ask(self, ids: Sequence[int], output_tokens: int) -> Answered:
        """One streamed request. Raises ProbeError for anything but a whole answer."""
        body = {
            "model": self._model,
            "prompt": ids,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        encoded = msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        first = last = 0.0
        usage: _Usage | None = None
        sent = time.perf_counter()
        async with self._client.stream(
            "POST", "/v1/completions", content=encoded, headers=headers
        ) as response:
            if response.status_code != 200:
                said = (await response.aread())[:300].decode(errors="replace")
                raise ProbeError(f"/v1/completions answered {response.status_code}: {said}")
            # Not aiter_lines: it splits at every character that Unicode calls a line's end.
            rest = b""
            async for received in response.aiter_bytes():
                *lines, rest = (rest + received).split(b"\n")
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = _CHUNK.decode(line[6:])
                    if chunk.choices:
                        last = time.perf_counter()
                        first = first or last
                    usage = chunk.usage or usage
        if usage is None or not first:
            raise ProbeError("the answer ended without tokens or without usage")
        cached = (usage.prompt_tokens_details or _Details()).cached_tokens or 0
        return Answered(sent, first, last, usage.prompt_tokens, usage.completion_tokens, cached)

    async def prefilling(self, longest: int, said: Callable[[str], None]) -> list[Prefilling]:
        """New prompts one after the other, lengths in turn, so that drift meets them all. The
        median of each length."""
        lengths = sorted({max(16, int(longest * share)) for share in SHARES})
        seconds: dict[int, list[float]] = {length: [] for length in lengths}
        await self.ask(self.prompt(lengths[0]), 1)
        for _ in range(REPEATS):
            for length in lengths:
                answered = await self.ask(self.prompt(length), 1)
                seconds[length].append(answered.first - answered.sent)
        found = [Prefilling(length, median(each)) for length, each in seconds.items()]
        for each in found:
            said(f"prompt of {each.tokens:,} tokens: first token after {each.seconds * 1e3:.1f} ms")
        return found

    async def decoding(self, longest: int, said: Callable[[str], None]) -> list[Decoding]:
        """Several requests at a time, with short and with long prompts, in turn. The median of
        each."""
        fits = self.known.cache_tokens
        loads = [
            (prompt, count)
            for prompt in (32, max(64, longest // 2))
            for count in CONCURRENCIES
            if count * (prompt + DECODED) < 0.8 * fits
        ]
        steps: dict[tuple[int, int], list[float]] = {load: [] for load in loads}
        for _ in range(REPEATS):
            for load in loads:
                steps[load].append(await self._step(*load))
        found = []
        for (prompt, count), seconds in steps.items():
            step = Decoding(count, count * (prompt + DECODED / 2), median(seconds))
            found.append(step)
            said(
                f"{count} at a time, {prompt:,} tokens each: a step of {step.seconds * 1e3:.2f} ms"
            )
        return found

    async def _step(self, prompt: int, count: int) -> float:
        """Seconds of a decoding step while all of them decode.

        The prompts are cached before, so that they all start at about the same time."""
        prompts = [self.prompt(prompt) for _ in range(count)]
        for ids in prompts:
            await self.ask(ids, 1)
        answers = await asyncio.gather(*(self.ask(ids, DECODED) for ids in prompts))
        return median((each.last - each.first) / (each.output_tokens - 1) for each in answers)
