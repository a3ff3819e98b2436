"""What naming a prompt costs, and what block sizes are worth.

    python -m bench.prompt                      # parsing, hashing, block sizes on made-up traffic
    python -m bench.prompt --trace FILE.jsonl   # block sizes on a trace's lengths and prefixes too

A trace has one request a line with ``input_length`` in tokens and ``hash_ids``, one for each 512
tokens, as Mooncake publishes them. Times are CPU microseconds, the least of several rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash

from router.prompt import PARSERS
from router.prompt.canonical import chain
from router.prompt.spans import SPANS, spans

BYTES_PER_TOKEN = 4
ENGINE_BLOCK = 16 * BYTES_PER_TOKEN


def cost(call: Callable[..., object], *given: object, rounds: int = 7) -> float:
    """CPU microseconds of one call."""
    work = partial(call, *given)
    work()
    start = time.process_time()
    work()
    times = max(3, int(0.01 / max(time.process_time() - start, 1e-7)))
    times = min(times, 5000)
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - start) / times)
    return best * 1e6


# Bodies


_rng = random.Random(1)
_WORDS = [
    "".join(_rng.choices("abcdefghijklmnopqrstuvwxyz", k=_rng.randint(2, 9))) for _ in range(3000)
]


def prose(size: int, foreign: bool = False) -> str:
    """Text with about as many line ends and quotes as code and prose have."""
    out: list[str] = []
    length = 0
    while length < size:
        word = _rng.choice(_WORDS)
        if _rng.random() < 0.12:
            word += "\n   "
        if _rng.random() < 0.04:
            word = f'"{word}"'
        if foreign and _rng.random() < 0.05:
            word = "é—名"
        out.append(word)
        length += len(word) + 1
    return " ".join(out)[:size]


def conversation(size: int, turns: int, foreign: bool = False) -> dict[str, Any]:
    """A chat body of about so many bytes."""
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": prose(size // turns, foreign)}
        for i in range(turns)
    ]
    return {"model": "m", "messages": messages, "stream": True, "max_tokens": 100}


def agent(steps: int) -> dict[str, Any]:
    """A chat body of an agent: tools, system prompt, calls and results."""
    described = {key: {"type": "string", "description": prose(60)} for key in "abcd"}
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}",
                "description": prose(300),
                "parameters": {"type": "object", "properties": described},
            },
        }
        for i in range(20)
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": prose(8000)}]
    for i in range(steps):
        called = {"name": "tool_1", "arguments": json.dumps({"a": prose(400)})}
        call = {"id": f"call_{i}", "type": "function", "function": called}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": prose(4000)})
    return {"model": "m", "messages": messages, "tools": tools, "stream": True}


class Plain(msgspec.Struct):
    """Plain typed decoding with msgspec, for comparison."""

    messages: list[dict[str, Any]]
    model: str = ""


def parsing() -> None:
    """What one body costs, seen before and for the first time."""
    typed = msgspec.json.Decoder(Plain).decode
    parse = PARSERS["/v1/chat/completions"]
    print("body                       bytes  parse  first time  json.loads  msgspec typed  blocks")
    cases: list[tuple[str, Callable[[], dict[str, Any]], bool]] = [
        ("4 KB, 4 messages", lambda: conversation(4096, 4), False),
        ("64 KB, 12 messages", lambda: conversation(65_536, 12), False),
        ("64 KB, other scripts", lambda: conversation(65_536, 12, foreign=True), False),
        ("64 KB, the same, \\u", lambda: conversation(65_536, 12, foreign=True), True),
        ("400 KB, 40 messages", lambda: conversation(409_600, 40), False),
        ("agent, 20 steps", lambda: agent(20), False),
    ]
    for name, make, escaped in cases:
        fresh = [json.dumps(make(), ensure_ascii=escaped).encode() for _ in range(5)]
        first = float("inf")
        for each in fresh:
            start = time.process_time()
            parse(each)
            first = min(first, (time.process_time() - start) * 1e6)
        body = fresh[0]
        print(
            f"{name:24} {len(body):7} {cost(parse, body):6.1f} {first:11.1f} "
            f"{cost(json.loads, body):11.1f} {cost(typed, body):14.1f} "
            f"{len(parse(body).chain):7}"
        )


# Hashing


Cuts = list[slice]
"""Blocks of one size, as slices made once."""


def full(text: bytes, cuts: Cuts) -> Cuts:
    """The full blocks of a text."""
    return cuts[: len(text) // cuts[0].stop]


def by_slices(text: bytes, cuts: Cuts) -> array[int]:
    xxh3 = xxhash.xxh3_64_intdigest
    h = 7
    return array("Q", [h := xxh3(text[cut], h) for cut in full(text, cuts)])


def by_views(text: bytes, cuts: Cuts) -> array[int]:
    xxh3 = xxhash.xxh3_64_intdigest
    h = 7
    view = memoryview(text)
    return array("Q", [h := xxh3(view[cut], h) for cut in full(text, cuts)])


def by_stream(text: bytes, cuts: Cuts) -> array[int]:
    state = xxhash.xxh3_64(seed=7)
    update, digest = state.update, state.intdigest
    out = array("Q")
    for cut in full(text, cuts):
        update(text[cut])
        out.append(digest())
    return out


_KEYS = np.random.default_rng(1).integers(1, 2**63, 1 << 18, np.uint64) | np.uint64(1)


def by_sums(text: bytes, cuts: Cuts) -> array[int]:
    """Multilinear hashing with prefix sums of words times keys. Weaker than xxh3."""
    size = cuts[0].stop
    count = len(text) // size
    words = np.frombuffer(text, "<u4", count * size // 4)
    sums = (words * _KEYS[: len(words)]).reshape(count, -1).sum(1, np.uint64).cumsum()
    return array("Q", sums.tobytes())


def hashing() -> None:
    """Compare ways to hash every prefix of a text."""
    print("\nhashing                  4 KB   64 KB  400 KB")
    texts = [prose(size).encode() for size in (4096, 65_536, 409_600)]
    print("chain()             ", *(f"{cost(chain, t, 7):7.1f}" for t in texts))
    for size in (256, 1024):
        fixed = [slice(a, b) for a, b in pairwise(spans(size, size, longest=1 << 20))]
        for way in (by_slices, by_views, by_stream, by_sums):
            times = (f"{cost(way, t, fixed):7.1f}" for t in texts)
            print(f"{way.__name__:10}{size:6}    ", *times)


# Block sizes

Traffic = list[tuple[int, int]]
"""(bytes in common with what was sent before, bytes) of each prompt that has a prefix."""

SCHEMES: dict[str, tuple[int, ...]] = {
    **{f"fixed {size}": spans(size, size, longest=4 << 20) for size in (128, 256, 512, 1024, 2048)},
    **{
        f"{first}, 1/{growth}, to {largest}": spans(first, largest, growth, 4 << 20)
        for first, growth, largest in (
            (128, 64, 2048),
            (256, 128, 2048),
            (256, 64, 2048),
            (256, 32, 2048),
            (256, 32, 4096),
            (256, 16, 2048),
        )
    },
}


def agents(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Lengths (shared, whole) of prompts whose steps each contain all of the step before."""
    for _ in range(40):
        at = rng.randint(4_000, 20_000) + rng.randint(1_000, 30_000)
        yield at, at + 500
        for _ in range(rng.randint(5, 30)):
            grown = at + int(rng.triangular(200, 8_000, 1_000))
            yield at, grown
            at = grown


def chats(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Lengths (shared, whole) of prompts with a short system prompt and then turns."""
    for _ in range(150):
        at = rng.randint(200, 3_000)
        for _ in range(rng.randint(2, 12)):
            grown = at + int(rng.triangular(200, 4_000, 800))
            yield at, grown
            at = grown


def shared(rng: random.Random) -> Iterator[tuple[int, int]]:
    """Lengths (shared, whole) of prompts with one long prefix and different questions."""
    for _ in range(20):
        prefix = rng.randint(1_000, 30_000)
        for _ in range(50):
            yield prefix, prefix + rng.randint(200, 2_000)


def traced(path: Path, limit: int = 3000) -> Traffic:
    """A trace's requests: the leading ids seen before in the same places are the common prefix.

    Where inside its 512 tokens a prefix really ends is not in the trace; it is drawn at random.
    """
    rng = random.Random(3)
    seen: set[tuple[int, int]] = set()
    traffic = []
    for line in path.read_text().splitlines()[:limit]:
        request = json.loads(line)
        ids = request["hash_ids"]
        size = request["input_length"] * BYTES_PER_TOKEN
        known = 0
        before = -1
        for each in ids:
            if (before, each) not in seen:
                break
            before = each
            known += 1
        seen.update(pairwise([-1, *ids]))
        common = min(size, (known * 512 + rng.randrange(512)) * BYTES_PER_TOKEN)
        if known:
            traffic.append((common, size))
    return traffic


def errors(bounds: tuple[int, ...], traffic: Traffic) -> tuple[float, float, float, float, float]:
    """(mean, p99 tokens missed, mean % of the prefix missed, blocks and microseconds a prompt)."""
    missed: list[float] = []
    share: list[float] = []
    blocks = 0
    for common, size in traffic:
        held = common // ENGINE_BLOCK * ENGINE_BLOCK  # the engine reuses whole blocks too
        found = bounds[bisect_right(bounds, common) - 1]
        missed.append(max(0, held - found) / BYTES_PER_TOKEN)
        share.append(100 * max(0, held - found) / max(held, 1))
        blocks += bisect_right(bounds, size) - 1
    missed.sort()
    sample = [size for _, size in traffic[:: max(1, len(traffic) // 25)]]
    text = bytes(max(sample))
    cuts = [slice(a, b) for a, b in pairwise(bounds)]
    xxh3 = xxhash.xxh3_64_intdigest

    def hash_one(size: int) -> object:
        h = 7
        return array("Q", [h := xxh3(text[c], h) for c in cuts[: bisect_right(bounds, size) - 1]])

    us = sum(cost(hash_one, size, rounds=2) for size in sample) / len(sample)
    n = len(traffic)
    return sum(missed) / n, missed[int(n * 0.99)], sum(share) / n, blocks / n, us


def block_sizes(trace: Path | None) -> None:
    """What each scheme misses of a prefix, and what it costs."""
    kinds: dict[str, Traffic] = {
        "agents": list(agents(random.Random(1))),
        "chats": list(chats(random.Random(2))),
        "shared prefix": list(shared(random.Random(3))),
    }
    if trace is not None:
        kinds["trace"] = traced(trace)
    for kind, traffic in kinds.items():
        mean = sum(size for _, size in traffic) / len(traffic)
        print(f"\n{kind}: {len(traffic)} prompts, {mean:.0f} bytes on average")
        print(
            "blocks               missed tokens: mean    p99   % of prefix   blocks/prompt     us"
        )
        for name, bounds in SCHEMES.items():
            tokens, worst, share, blocks, us = errors(bounds, traffic)
            print(f"{name:22}{tokens:19.1f} {worst:6.0f} {share:12.2f} {blocks:14.1f} {us:8.1f}")


def main() -> None:
    """Print all tables of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trace", type=Path, help="a trace in Mooncake's format")
    options = parser.parse_args()
    print(f"spans in use: {len(SPANS) - 1} blocks up to {SPANS[-1]} bytes")
    parsing()
    hashing()
    block_sizes(options.trace)


if __name__ == "__main__":
    main()
