"""The same requests on the live engine and on the model of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from math import inf
from random import Random
from statistics import median

import msgspec
import xxhash

from loadgen.calibrate.fit import Fit
from loadgen.calibrate.probe import Answered, Probe
from loadgen.engine import Engine, EngineParams, Request

REQUESTS = 200


class Check(msgspec.Struct, frozen=True):
    """Medians over the requests, in seconds and tokens."""

    requests: int
    measured_ttft: float
    simulated_ttft: float
    measured_cached: int
    """Tokens, in all."""
    simulated_cached: int
    bunched: int
    """Answers whose tokens came nearly all at once: the engine's processes, or the client, had to
    wait for a processor."""

    @property
    def error(self) -> float:
        """Simulated over measured, minus 1."""
        return self.simulated_ttft / self.measured_ttft - 1


class Asked(msgspec.Struct, frozen=True):
    """One request as it was sent, and what came of it."""

    ids: list[int]
    output_tokens: int
    answered: Answered


async def check(
    probe: Probe, found: Fit, *, longest: int, at_a_time: int = 1, requests: int = REQUESTS
) -> Check:
    """Ask a mixed sequence (new prompts, follow-ups and branches of earlier ones), a few at a time,
    then run it through the model with the very times of sending. Raises ProbeError."""
    asked = await _play(probe, longest, at_a_time, requests)
    simulated = replayed(asked, found)
    return Check(
        len(asked),
        median(each.answered.first - each.answered.sent for each in asked),
        median(ttft for ttft, _ in simulated),
        sum(each.answered.cached_tokens for each in asked),
        sum(cached for _, cached in simulated),
        bunched([each.answered for each in asked], found.params),
    )


async def _play(probe: Probe, longest: int, at_a_time: int, requests: int) -> list[Asked]:
    random = Random(time.time_ns())
    known: list[list[int]] = []
    asked: list[Asked] = []
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            ids = probe.prompt(random.randrange(32, max(33, longest // 3)))
            if known and random.random() < 0.6:
                earlier = random.choice(known[-20:])
                ids = (earlier[: random.randrange(1, len(earlier) + 1)] + ids)[-longest:]
            output = random.choice((4, 16, 32))
            known.append(ids)
            asked.append(Asked(ids, output, await probe.ask(ids, output)))

    await asyncio.gather(*(client() for _ in range(at_a_time)))
    return asked


def replayed(asked: Sequence[Asked], found: Fit) -> list[tuple[float, int]]:
    """(time to first token, cached tokens) of each, on an engine with an empty cache."""
    engine = Engine(found.params)
    made = []
    order = sorted(asked, key=lambda each: each.answered.sent)
    start = order[0].answered.sent
    for each in order:
        at = each.answered.sent - start
        while engine.due <= at:
            engine.step()
        keys = _hashes(each.ids, found.params.block_size)
        request = Request(len(each.ids), each.output_tokens, keys)
        engine.add(request, at)
        made.append((at, request))
    while engine.due < inf:
        engine.step()
    return [(request.first_token_at - at, request.cached_tokens) for at, request in made]


def bunched(answers: Sequence[Answered], params: EngineParams) -> int:
    """How many came more than ten times as fast as the engine makes tokens."""
    least = (params.step_base_seconds + params.step_request_seconds) / 10
    return sum(each.last - each.first < least * (each.output_tokens - 1) for each in answers)


def _hashes(ids: Sequence[int], size: int) -> list[int]:
    """Of the full blocks, each covering those before it."""
    made, before = [], 0
    for end in range(size, len(ids) + 1, size):
        block = b"".join(token.to_bytes(4, "little") for token in ids[end - size : end])
        before = xxhash.xxh3_64_intdigest(block, before)
        made.append(before >> 1)
    return made
