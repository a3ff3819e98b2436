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

from loadgen.calibrate.fit import ANSWERED, Decoding, Prefilling, Together
from loadgen.engine import EngineParams

LOWEST_ID, HIGHEST_ID = 10, 2000
"""Token ids asked with: within every vocabulary, above the usual special ones."""
ROUNDS = 5
"""The least number of rounds, each of which measures everything."""
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Prompts' lengths as shares of the longest; up to a tenth shorter, no two alike, since engines
are faster with a length that they have just had."""
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

    @property
    def tpot(self) -> float:
        """Seconds a token after the first."""
        return (self.last - self.first) / max(1, self.output_tokens - 1)


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Card]


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

    def __init__(
        self, client: httpx.AsyncClient, model: str, known: EngineParams, seed: int | None = None
    ) -> None:
        self._client = client
        self.model = model
        # By the clock: another run must not ask what this one leaves in the engine's cache.
        self._random = Random(time.time_ns() if seed is None else seed)
        self.known = known
        """Block size, blocks and limits; its rates mean nothing."""

    @classmethod
    async def connect(
        cls, client: httpx.AsyncClient, *, batched_tokens: int, seed: int | None = None
    ) -> Probe:
        """Ask the engine what it is. seed: of the prompts; by default no two runs have the same.

        Raises ProbeError and httpx.HTTPError."""
        metrics, models = await client.get("/metrics"), await client.get("/v1/models")
        try:
            info = {
                name: value
                for family in text_string_to_metric_families(metrics.text)
                for sample in family.samples
                if sample.name == "vllm:cache_config_info"
                for name, value in sample.labels.items()
            }
            card = msgspec.json.decode(models.content, type=_Models).data[0]
            size, blocks = int(info["block_size"]), int(info["num_gpu_blocks"])
        except (ValueError, LookupError) as error:
            raise ProbeError(
                "no vllm:cache_config_info in /metrics "
                f"({metrics.status_code}), or no model in /v1/models ({models.status_code}): "
                "give calibrate the URL of a vLLM engine, not of a gateway"
            ) from error
        known = EngineParams(
            name="calibrated",
            origin=f"fitted to {card.id} at {client.base_url}",
            block_size=size,
            num_blocks=blocks,
            max_num_batched_tokens=batched_tokens,
            max_model_len=min(card.max_model_len or 131_072, (blocks - 1) * size),
        )
        return cls(client, card.id, known, seed)

    def prompt(self, tokens: int) -> list[int]:
        """Token ids that were never sent before."""
        return self._random.choices(range(LOWEST_ID, HIGHEST_ID), k=tokens)

    async def ask(self, ids: Sequence[int], output_tokens: int) -> Answered:
        """One streamed request. Raises ProbeError for anything but a whole answer."""
        body = {
            "model": self.model,
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

    async def measure(
        self,
        longest: int,
        seconds: float,
        said: Callable[[str], None],
        went: Callable[[str], None],
    ) -> tuple[list[Prefilling], list[Decoding], list[Together]]:
        """Everything in turn, five times and until the seconds are over, so that a machine whose
        speed drifts drifts for all of it. The median of each. said hears what was found, went how
        far it is."""
        fits = self.known.cache_tokens
        loads = [
            (prompt, count)
            for prompt in (32, max(64, longest // 2))
            for count in CONCURRENCIES
            if count * (prompt + DECODED) < 0.8 * fits
        ]
        firsts: list[list[Answered]] = [[] for _ in range(3 * len(SHARES))]
        runs: list[list[list[Answered]]] = [[] for _ in loads]
        await self.ask(self.prompt(32), ANSWERED)
        until, rounds = time.monotonic() + seconds, 0
        while rounds < ROUNDS or time.monotonic() < until:
            rounds += 1
            for number, share in enumerate(SHARES):
                for kind, answered in enumerate(await self._firsts(share * longest)):
                    firsts[3 * number + kind].append(answered)
            for found, load in zip(runs, loads, strict=True):
                found.append(await self._together(*load))
            went(f"round {rounds}, of at least {ROUNDS}: done")
        said(f"medians of {rounds} rounds:")
        prefilling = [
            Prefilling(
                round(median(each.prompt_tokens for each in cell)),
                median(each.first - each.sent for each in cell),
                round(median(each.cached_tokens for each in cell)),
            )
            for cell in firsts
        ]
        for one in prefilling:
            what = f"prompt of about {one.tokens:,} tokens, {one.cached:,} cached"
            said(f"{what}: first token after {one.seconds * 1e3:.1f} ms")
        decoding, together = [], []
        for (prompt, count), found in zip(loads, runs, strict=True):
            step = median(map(_step, found))
            first = median(median(each.first - each.sent for each in run) for run in found)
            decoding.append(Decoding(count, count * (prompt + DECODED / 2), step))
            together.append(Together(count, prompt, found[0][0].cached_tokens, first))
            said(
                f"{count} at a time, {prompt:,} tokens each: first token after "
                f"{first * 1e3:.1f} ms, a step of {step * 1e3:.2f} ms"
            )
        return prefilling, decoding, together

    async def _firsts(self, most: float) -> list[Answered]:
        """A new prompt, one that shares half of it, and the same again."""
        length = max(16, int(most * self._random.uniform(0.9, 1)))
        half = max(1, int(length * self._random.uniform(0.45, 0.55)))
        ids = self.prompt(length)
        other = ids[:half] + self.prompt(length - half)
        return [await self.ask(each, ANSWERED) for each in (ids, other, other)]

    async def _together(self, prompt: int, count: int) -> list[Answered]:
        """Requests sent at once, whose prompts were asked before, so that all soon decode."""
        prompts = [self.prompt(prompt) for _ in range(count)]
        for ids in prompts:
            await self.ask(ids, 1)
        return await asyncio.gather(*(self.ask(ids, DECODED) for ids in prompts))


def _step(answers: list[Answered]) -> float:
    """Seconds of a decoding step while all of them decode."""
    return median(each.tpot for each in answers)
