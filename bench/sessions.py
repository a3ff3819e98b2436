"""Sessions of agents and chats, and what became of each of their requests."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter
from typing import Any

import httpx
import msgspec

_WORDS = (
    *("cache", "block", "replica", "prompt", "token", "queue", "depth", "the", "of", "a", "and"),
    *("to", "with", "from", "each", "holder", "chain", "route", "prefill", "decode", "evict"),
    *("least", "recently", "used", "session", "agent", "tool", "answer", "system", "question"),
    *("why", "when", "value", "returns", "index", "error", "404", "{json}", "(x)", "'quoted'"),
    *("Straße", "数据", "naïve", "->", "==", "!=", "3.14", "0x1f", "\n", ";\n"),
)
THINKING = (0.02, 0.1)
"""Seconds from an answer to the next step: a tool runs, somebody types."""
TOOL = {
    "type": "function",
    "function": {
        "name": "run",
        "description": "Runs a command.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    },
}


class Step(msgspec.Struct):
    """One request and its result, in tokens and seconds."""

    predicted: int
    cached: int
    prompt: int
    ttft: float
    replica: str

    def exact(self, block: int) -> bool:
        """Whether the prediction equals what the engine delivered."""
        return self.error(block) == 0

    def error(self, block: int) -> int:
        """How far off it was: predictions are cut to what an engine can deliver."""
        most = min(self.predicted, self.prompt - 1)
        return abs(most // block * block - self.cached)


class Workload:
    """Sessions of agents (with tools) and chats that share a few system prompts."""

    def __init__(self, seed: int, requests: int) -> None:
        self.rng = random.Random(seed)
        self.left = requests
        self.systems = [self.text(150) for _ in range(3)]
        self.steps: list[Step] = []
        self.failed: list[str] = []
        self.answered: Callable[[str], Awaitable[None]] | None = None
        """Awaited with the replica's name after each answer, before the next step of its session."""

    def text(self, words: int) -> str:
        """A few words that fill a prompt."""
        return " ".join(self.rng.choice(_WORDS) for _ in range(words))

    async def run(self, url: str, sessions: int) -> None:
        """Play so many sessions at a time until all requests are made."""
        async with httpx.AsyncClient(timeout=600.0, trust_env=False) as client:
            await asyncio.gather(*(self._player(client, url) for _ in range(sessions)))

    async def _player(self, client: httpx.AsyncClient, url: str) -> None:
        while self.left > 0:
            await self._session(client, url)

    async def _session(self, client: httpx.AsyncClient, url: str) -> None:
        rng = self.rng
        system = {"role": "system", "content": rng.choice(self.systems)}
        messages: list[dict[str, Any]] = [system, {"role": "user", "content": self.text(60)}]
        agent = rng.random() < 0.6
        for number in range(rng.randint(2, 8)):
            if self.left <= 0:
                return
            self.left -= 1
            body: dict[str, Any] = {
                "model": "tiny", "messages": messages, "max_tokens": rng.randint(4, 24),
                "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            if agent:
                body["tools"] = [TOOL]
            said = await self._ask(client, url, body)
            if said is None:
                return
            await asyncio.sleep(rng.uniform(*THINKING))
            if agent:
                name, call = f"call_{number}", {"command": self.text(5)}
                function = {"name": "run", "arguments": json.dumps(call)}
                calls = [{"id": name, "type": "function", "function": function}]
                result = self.text(rng.randint(20, 120))
                messages = [
                    *messages,
                    {"role": "assistant", "content": said, "tool_calls": calls},
                    {"role": "tool", "tool_call_id": name, "content": result},
                ]
            else:
                question = {"role": "user", "content": self.text(rng.randint(10, 60))}
                messages = [*messages, {"role": "assistant", "content": said}, question]

    async def _ask(self, client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> str | None:
        """The answer's text; None when there was none."""
        started = perf_counter()
        ttft = 0.0
        said = ""
        usage: dict[str, Any] = {}
        headers = {"x-warmroute-explain": "1"}
        path = url + "/v1/chat/completions"
        try:
            async with client.stream("POST", path, json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    self.failed.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                    return None
                async for line in _lines(answer):
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if event.get("error"):
                        self.failed.append(str(event["error"])[:200])
                        return None
                    if event.get("choices"):
                        ttft = ttft or perf_counter() - started
                        said += event["choices"][0]["delta"].get("content") or ""
                    usage = event.get("usage") or usage
        except httpx.HTTPError as error:
            self.failed.append(repr(error))
            return None
        details = usage.get("prompt_tokens_details") or {}
        replica = answer.headers.get("x-warmroute-replica", "")
        predicted = int(answer.headers.get("x-warmroute-predicted-tokens", 0))
        cached = details.get("cached_tokens") or 0
        self.steps.append(Step(predicted, cached, usage["prompt_tokens"], ttft, replica))
        if self.answered is not None:
            await self.answered(replica)
        return said

    def summary(self, block: int) -> dict[str, float]:
        """The figures of a run: hit rate, times, and how good predictions were."""
        steps = self.steps
        waits = sorted(step.ttft for step in steps)
        return {
            "requests": len(steps),
            "failed": len(self.failed),
            "hit_rate": sum(step.cached for step in steps) / sum(step.prompt for step in steps),
            "ttft_mean_ms": 1e3 * sum(waits) / len(waits),
            "ttft_p90_ms": 1e3 * waits[int(0.9 * len(waits))],
            "exact_share": sum(step.exact(block) for step in steps) / len(steps),
            "mean_absolute_error": sum(step.error(block) for step in steps) / len(steps),
        }


async def _lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Lines that end with a line feed: httpx's end at others as well, such as U+2028, which a model
    may write."""
    rest = b""
    async for data in answer.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()
    yield rest.decode()
