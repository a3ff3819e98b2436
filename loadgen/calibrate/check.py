"""The same requests on the live engine and on the model of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from random import Random

import msgspec
import numpy as np
import xxhash

from loadgen.calibrate.probe import Answered, Probe
from loadgen.engine import Engine, EngineParams, Request
from loadgen.engine.file import Agreement


class Asked(msgspec.Struct, frozen=True):
    """One request as it was sent, and what came of it."""

    output_tokens: int
    answered: Answered
    hashes: list[int]
    """Of its prompt's full blocks, each covering those before it."""


class Played(msgspec.Struct, frozen=True):
    """Mixed requests, sent to an engine that knew none of them, so many at a time."""

    at_a_time: int
    asked: list[Asked]


class Seen(msgspec.Struct, frozen=True):
    """One request on the model."""

    ttft: float
    tpot: float
    cached_tokens: int


async def play(probe: Probe, longest: int, at_a_time: int, requests: int) -> Played:
    """Ask a mixed sequence: new prompts, follow-ups and branches of earlier ones. Raises
    ProbeError."""
    random = Random(time.time_ns())
    known: list[list[int]] = []
    asked: list[Asked] = []
    left = iter(range(requests))
    size = probe.known.block_size

    async def client() -> None:
        for _ in left:
            ids = probe.prompt(random.randrange(32, max(33, longest // 3)))
            if known and random.random() < 0.6:
                earlier = random.choice(known[-20:])
                ids = (earlier[: random.randrange(1, len(earlier) + 1)] + ids)[-longest:]
            output = random.choice((4, 16, 32))
            known.append(ids)
            answered = await probe.ask(ids, output)
            asked.append(Asked(output, answered, block_hashes(ids, size)))

    await asyncio.gather(*(client() for _ in range(at_a_time)))
    asked.sort(key=lambda each: each.answered.sent)
    return Played(at_a_time, asked)


def replayed(played: Played, params: EngineParams) -> list[Seen]:
    """The same requests on a model with an empty cache, in the same order, and as many at a time:
    each is sent when one before it has ended, and the client has taken as long as it really took.
    At the real times of sending, a model that is a little too slow would queue ever more."""
    engine = Engine(params)
    made: list[tuple[float, Request]] = []
    free = [0.0] * played.at_a_time
    """When each client that waits for nothing sends its next request."""
    pause = _pause(played)
    left = iter(played.asked)
    each = next(left, None)
    while each is not None or engine.due < inf:
        if each is not None and free and free[0] < engine.due:
            at = heappop(free)
            request = Request(each.answered.prompt_tokens, each.output_tokens, each.hashes)
            engine.add(request, at)
            made.append((at, request))
            each = next(left, None)
            continue
        result = engine.step()
        for _ in result.finished:
            heappush(free, result.at + pause)
    return [
        Seen(
            request.first_token_at - at,
            (request.finished_at - request.first_token_at) / max(1, request.output_tokens - 1),
            request.cached_tokens,
        )
        for at, request in made
    ]


def _pause(played: Played) -> float:
    """Seconds of a client between an answer and its next request, the median."""
    ends = sorted(each.answered.last for each in played.asked)
    begins = [each.answered.sent for each in played.asked][played.at_a_time :]
    gaps = [sent - end for end, sent in zip(ends, begins, strict=False)]
    return max(0.0, float(np.median(gaps))) if gaps else 0.0


def agreement(plays: Sequence[Played], params: EngineParams) -> Agreement:
    """What was measured and what the model says, over all of several plays at the same load."""
    asked = [each for played in plays for each in played.asked]
    model = [seen for played in plays for seen in replayed(played, params)]
    real = [each.answered for each in asked]
    ttft = [each.first - each.sent for each in real]
    tpot = [each.tpot for each in real]
    real50, real90 = np.percentile(ttft, (50, 90))
    model50, model90 = np.percentile([seen.ttft for seen in model], (50, 90))
    return Agreement(
        at_a_time=plays[0].at_a_time,
        requests=len(asked),
        measured_ttft_p50=float(real50),
        simulated_ttft_p50=float(model50),
        measured_ttft_p90=float(real90),
        simulated_ttft_p90=float(model90),
        # A mean: answers of four tokens that one prefill holds up make medians jump.
        measured_tpot=float(np.mean(tpot)),
        simulated_tpot=float(np.mean([seen.tpot for seen in model])),
        measured_cached=sum(each.cached_tokens for each in real),
        simulated_cached=sum(seen.cached_tokens for seen in model),
        bunched=bunched(real, params),
    )


def bunched(answers: Sequence[Answered], params: EngineParams) -> int:
    """How many came more than ten times as fast as the engine makes tokens."""
    least = (params.step_base_seconds + params.step_request_seconds) / 10
    return sum(each.last - each.first < least * (each.output_tokens - 1) for each in answers)


def block_hashes(ids: Sequence[int], size: int) -> list[int]:
    """Of the full blocks, each covering those before it."""
    made, before = [], 0
    for end in range(size, len(ids) + 1, size):
        block = b"".join(token.to_bytes(4, "little") for token in ids[end - size : end])
        before = xxhash.xxh3_64_intdigest(block, before)
        made.append(before >> 1)
    return made
