"""What it costs to diagnose and audit a request: python -m bench.diagnosis

Conversations of agents grow step by step; every prompt is parsed, diagnosed, and told to the audit.
Shown are medians of the time for one request, beside that of parsing its body, which is of the
same run: the caches of the processor are as cold for both. With a time stamp in the system prompt
no step goes on with the one before, so that all of it is hashed again.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from typing import Any, NamedTuple

import msgspec

from router.audit import Auditor
from router.diagnosis import Diagnoser
from router.prompt import PARSERS
from router.telemetry.record import Finished
from router.types import Load

PATH = "/v1/chat/completions"
HEADERS = [
    *(b"accept", b"application/json", b"content-type", b"application/json"),
    *(b"user-agent", b"OpenAI/Python 3.57.0", b"x-stainless-lang", b"python"),
    *(b"accept-encoding", b"gzip, deflate", b"x-stainless-retry-count", b"0"),
]
WORDS = [f"word{number}" for number in range(500)]


class Engine(msgspec.Struct):
    """The replica that answers everything."""

    name: str = "a"
    slot: int = 0
    block_tokens: int = 16
    restarts: int = 0


class Row(NamedTuple):
    """Medians in microseconds."""

    size: float
    parse: float
    asked: float
    ended: float


def say(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def measure(steps: int, system_words: int, *, stamped: bool) -> Row:
    """One conversation after the other, up to about a thousand requests."""
    engine = Engine()
    diagnoser = Diagnoser(64 << 20, lambda: [engine])
    loads = [Load()]
    auditor = Auditor(lambda: loads, dict)
    diagnoser.listener = auditor.take
    rows: list[Row] = []
    for number in range(max(1, 1000 // steps)):
        rng = random.Random(number)
        rules = say(rng, system_words)
        messages: list[dict[str, Any]] = [{"role": "user", "content": say(rng, 50)}]
        for step in range(steps):
            start = f"{step:02}:00:01 {rules}" if stamped else rules
            system = {"role": "system", "content": start}
            body = json.dumps({"model": "m", "messages": [system, *messages]}).encode()
            t0 = time.perf_counter()
            prompt = PARSERS[PATH](body)
            t1 = time.perf_counter()
            found = diagnoser.asked(prompt, prompt.text, HEADERS, b"", "", "chat")
            t2 = time.perf_counter()
            done = Finished("r", slot=0, replica="a", status=200)
            done.prompt_tokens = prompt.size // 4
            done.delivered = 0 if stamped else done.prompt_tokens
            t3 = time.perf_counter()
            diagnoser.ended(found, done, engine)
            t4 = time.perf_counter()
            rows.append(Row(prompt.size, *(1e6 * t for t in (t1 - t0, t2 - t1, t4 - t3))))
            call = {
                "id": f"c{step}",
                "type": "function",
                "function": {"name": "bash", "arguments": "{}"},
            }
            messages += [
                {"role": "assistant", "content": say(rng, 20), "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"c{step}", "content": say(rng, 150)},
            ]
    return Row(*(statistics.median(column) for column in zip(*rows, strict=True)))


def main() -> int:
    print(f"{'':34}{'kB':>6}{'parse':>8}{'asked':>8}{'ended':>8}   us, medians")
    for name, steps, words, stamped in (
        ("20 steps", 20, 1500, False),
        ("100 steps", 100, 1500, False),
        ("20 steps, a time stamp in each", 20, 1500, True),
        ("100 steps, a time stamp in each", 100, 1500, True),
    ):
        row = measure(steps, words, stamped=stamped)
        print(
            f"{name:34}{row.size / 1000:6.0f}{row.parse:8.1f}{row.asked:8.1f}{row.ended:8.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
