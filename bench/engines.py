"""Agents and chats through a gateway to real engines: what was predicted, what was delivered.

    python -m bench.engines URL [URL ...]             # engines that run already
    python -m bench.engines URL URL --requests 400 --sessions 6 --json out/engines.json

For each of round_robin, cache_aware, and cache_aware in exact mode, in turn: the engines' prefix
caches are emptied (needs VLLM_SERVER_DEV_MODE=1), a gateway is started, and the same sessions are
played. Told are the hit rate, TTFT, the share of requests whose prediction was exactly what the
engine reported as cached, and the mean absolute error of the prediction in tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import msgspec

_LISTENS = re.compile(r"listens on (\S+), admin on (\S+),")
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
    """One request and what came of it. Tokens and seconds."""

    predicted: int
    cached: int
    prompt: int
    ttft: float
    replica: str

    def exact(self, block: int) -> bool:
        """Whether the prediction was what the engine delivered."""
        return self.error(block) == 0

    def error(self, block: int) -> int:
        """How far off it was: predictions are cut to what an engine can deliver."""
        most = min(self.predicted, self.prompt - 1)
        return abs(most // block * block - self.cached)


class Gateway:
    """A gateway in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, admin: str) -> None:
        self.process = process
        self.url = url
        self.admin = admin
        self.lines: list[str] = []


@asynccontextmanager
async def gateway(urls: Sequence[str], *flags: str, wait: bool = True) -> AsyncIterator[Gateway]:
    """Start a gateway before some engines; wait until all are usable, and exact where asked for."""
    arguments = [flag for url in urls for flag in ("--replica", url)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.cli", "serve", *arguments, *flags,
        *("--port", "0", "--admin-port", "0", "--explain-headers", "--access-log", "0"),
        *("--settle-time", "0", "--drain-timeout", "1", "--slow-start", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )  # fmt: skip
    assert process.stdout is not None
    reading: asyncio.Task[None] | None = None
    lines: list[str] = []
    try:
        found = None
        while found is None:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise RuntimeError("the gateway ended: " + "".join(lines[-5:]))
            lines.append(line)
            found = _LISTENS.search(line)
        started = Gateway(process, found[1], found[2])
        started.lines = lines
        reading = asyncio.create_task(_read(process.stdout, lines))
        if wait:
            await usable(started, len(urls), exact="--exact" in flags)
        yield started
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
                await process.wait()
        if reading is not None:
            reading.cancel()


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode())  # noqa: PERF401  (seen while it grows)


async def usable(started: Gateway, count: int, *, exact: bool, within: float = 60.0) -> None:
    """Wait until so many replicas are usable, and exact when that is asked for."""
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(within):
        while True:
            told = (await client.get(started.admin + "/replicas")).json()
            if sum(one["usable"] and (one["exact"] or not exact) for one in told) >= count:
                return
            await asyncio.sleep(0.1)


class Workload:
    """Sessions of agents (with tools) and chats that share a few system prompts."""

    def __init__(self, seed: int, requests: int) -> None:
        self.rng = random.Random(seed)
        self.left = requests
        self.systems = [self.text(150) for _ in range(3)]
        self.steps: list[Step] = []
        self.failed: list[str] = []

    def text(self, words: int) -> str:
        """Some words."""
        return " ".join(self.rng.choice(_WORDS) for _ in range(words))

    async def run(self, url: str, sessions: int) -> None:
        """Play so many sessions at a time until all requests are made."""
        async with httpx.AsyncClient(timeout=120.0, trust_env=False) as client:
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
                async for line in answer.aiter_lines():
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
        self.steps.append(
            Step(
                int(answer.headers.get("x-warmroute-predicted-tokens", 0)),
                details.get("cached_tokens") or 0,
                usage["prompt_tokens"],
                ttft,
                answer.headers.get("x-warmroute-replica", ""),
            )
        )
        return said

    def summary(self, block: int) -> dict[str, float]:
        """What is told of a run."""
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


async def empty(urls: Sequence[str]) -> None:
    """Empty the engines' prefix caches."""
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        for url in urls:
            (await client.post(url + "/reset_prefix_cache")).raise_for_status()


async def block_of(url: str) -> int:
    """Tokens of an engine's blocks."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(url + "/metrics", follow_redirects=True)).text
    found = re.search(r'vllm:cache_config_info\{[^\n]*block_size="(\d+)"', text)
    return int(found[1]) if found else 16


MODES = {
    "round_robin": ("--policy", "round_robin"),
    "cache_aware": (),
    "cache_aware, exact": ("--exact",),
}


async def compare(urls: Sequence[str], requests: int, sessions: int, seed: int) -> dict[str, Any]:
    """Play the same sessions in each mode."""
    block = await block_of(urls[0])
    found: dict[str, Any] = {}
    for mode, flags in MODES.items():
        await empty(urls)
        async with gateway(urls, *flags) as started:
            workload = Workload(seed, requests)
            begun = perf_counter()
            await workload.run(started.url, sessions)
            found[mode] = workload.summary(block) | {"seconds": perf_counter() - begun}
        print(mode, {name: round(value, 3) for name, value in found[mode].items()}, flush=True)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = asyncio.run(compare(options.urls, options.requests, options.sessions, options.seed))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
