"""The queue in front of a real, saturated vLLM engine: python -m bench.queue_engines [--json FILE]

1. A batch of long prompts comes all at once, and meanwhile interactive requests come one by one.
   Three times: interactive alone, both as one class, and the batch marked as low priority.
2. More sessions of agents than the engine's small KV cache holds, with the door and without.

Starts one engine of its own, on the CPU. TTFT in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import httpx
import msgspec

from bench.engines import engines
from bench.gateways import gateway
from bench.vllm import EngineError, NoEngineError, empty

SETTINGS: Final = {"MAX_LEN": "8192", "NUM_BLOCKS": "640", "MAX_SEQS": "16"}
"""20,480 tokens of KV cache."""
LOW: Final = {"x-dynamo-request-priority": "-1"}
INTERACTIVE_S: Final = 0.5
"""Seconds between two interactive requests."""
WORDS_A_TOKEN: Final = 0.25
"""Of numbers up to 1000, in the tiny model's tokens."""
TASK_TOKENS: Final = 2500
RESULT_TOKENS: Final = 400
TOOL_S: Final = 0.3
STAGGER_S: Final = 0.4
"""How agents are: the task, each result of a tool, seconds that the tool runs, and between two
agents' starts."""


class Answered(msgspec.Struct, frozen=True):
    """One request that was answered."""

    ttft: float
    seconds: float
    prompt: int
    cached: int


class Client:
    """Sends chat requests, and keeps what became of them."""

    def __init__(self, http: httpx.AsyncClient, url: str, seed: int) -> None:
        self._http = http
        self._url = url
        self.rng = random.Random(seed)
        self.failed: list[str] = []

    def text(self, tokens: int) -> str:
        """Words that fill about so many tokens."""
        count = int(tokens * WORDS_A_TOKEN)
        return " ".join(str(self.rng.randrange(1000)) for _ in range(count))

    async def ask(
        self, messages: list[dict[str, Any]], output: int, headers: dict[str, str]
    ) -> Answered | None:
        """One streamed answer; None where there was none."""
        body = {
            "model": "tiny", "messages": messages, "max_tokens": output, "temperature": 0,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        started = perf_counter()
        first, usage = 0.0, None
        path = self._url + "/v1/chat/completions"
        try:
            async with self._http.stream("POST", path, json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    self.failed.append(f"{answer.status_code} {(await answer.aread())[:200]!r}")
                    return None
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if event.get("choices"):
                        first = first or perf_counter()
                    usage = event.get("usage") or usage
        except (httpx.HTTPError, ValueError) as error:
            self.failed.append(repr(error))
            return None
        if usage is None:
            self.failed.append("no usage")
            return None
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        now = perf_counter()
        return Answered(first - started, now - started, usage["prompt_tokens"], cached)


def asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def interactive(client: Client, until: asyncio.Event, least: int) -> list[Answered]:
    """A request every so often, until the batch is over and at least so many were sent."""
    tasks = []
    while len(tasks) < least or not until.is_set():
        tasks.append(asyncio.create_task(client.ask(asked(client.text(300)), 8, {})))
        await asyncio.sleep(INTERACTIVE_S)
    return [one for one in await asyncio.gather(*tasks) if one is not None]


async def two_classes(url: str, batch: int, headers: dict[str, str]) -> dict[str, Any]:
    """Interactive requests beside a batch of so many long ones; 0: alone."""
    over = asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600.0, trust_env=False, limits=limits) as http:
        client, other = Client(http, url, 1), Client(http, url, 2)
        beside = asyncio.create_task(interactive(client, over, 30))
        await asyncio.sleep(2 * INTERACTIVE_S)
        started = perf_counter()
        done = await asyncio.gather(
            *(other.ask(asked(other.text(3000)), 48, headers) for _ in range(batch))
        )
        took = perf_counter() - started
        over.set()
        found = await beside
    waits = sorted(one.ttft * 1e3 for one in found)
    return {
        "interactive": len(waits),
        "ttft_p50": round(median(waits)),
        "ttft_p90": round(waits[int(0.9 * len(waits))]),
        "ttft_max": round(waits[-1]),
        "batch_completed": sum(one is not None for one in done),
        "batch_seconds": round(took, 1),
        "failed": client.failed + other.failed,
    }


async def agents(url: str, players: int, sessions: int, steps: int) -> dict[str, Any]:
    """So many players, each with some sessions one after the other. A step has the whole history
    before it."""
    async with httpx.AsyncClient(timeout=600.0, trust_env=False) as http:
        client = Client(http, url, 3)

        async def session(name: str) -> list[Answered]:
            messages = asked(client.text(TASK_TOKENS))
            key = {"x-session-id": name}
            found = []
            for _ in range(steps):
                answered = await client.ask(messages, 16, key)
                if answered is not None:
                    found.append(answered)
                messages = [
                    *messages,
                    {"role": "assistant", "content": client.text(16)},
                    {"role": "user", "content": client.text(RESULT_TOKENS)},
                ]
                await asyncio.sleep(TOOL_S)
            return found

        async def player(number: int) -> list[Answered]:
            # Not all at the same moment, as nobody does.
            await asyncio.sleep(number * STAGGER_S)
            done = [await session(f"{number}-{which}") for which in range(sessions)]
            return [one for each in done for one in each]

        started = perf_counter()
        done = await asyncio.gather(*(player(number) for number in range(players)))
        took = perf_counter() - started
    found = [one for each in done for one in each]
    waits = sorted(one.ttft * 1e3 for one in found)
    return {
        "steps": len(found),
        "seconds": round(took, 1),
        "hit_rate": round(sum(one.cached for one in found) / sum(one.prompt for one in found), 3),
        "ttft_p50": round(median(waits)),
        "ttft_p90": round(waits[int(0.9 * len(waits))]),
        "failed": client.failed,
    }


async def measure(url: str, batch: int, players: int) -> dict[str, Any]:
    """Everything, in turn."""
    found: dict[str, Any] = {}
    for name, count, headers in (
        ("interactive alone", 0, {}),
        ("one class", batch, {}),
        ("batch is low priority", batch, LOW),
    ):
        await empty([url])
        async with gateway([url]) as started:
            found[name] = await two_classes(started.url, count, headers)
        print(name, found[name], flush=True)
    for name, flags in (("no door", ("--queue-door", "0")), ("with the door", ())):
        await empty([url])
        async with gateway([url], *flags) as started:
            found[name] = await agents(started.url, players, 4, 6)
        print(name, found[name], flush=True)
    return found


def main() -> int:
    """The command `python -m bench.queue_engines`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=150, help="requests of the batch")
    parser.add_argument("--agents", type=int, default=14, help="at a time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        with engines(1, **SETTINGS) as started:
            found = asyncio.run(measure(started[0].url, options.batch, options.agents))
    except (NoEngineError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
