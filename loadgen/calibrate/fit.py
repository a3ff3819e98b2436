"""The step-time model of ``EngineParams`` fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from statistics import median

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.engine import Engine, EngineParams, Request

Floats = npt.NDArray[np.float64]
ANSWERED = 4
"""Tokens of the answers that first tokens are measured with. With one alone the engine would have
nothing else to do when it is sent, as is rare in use."""
LEAST_PER_TOKEN = 1e-9
"""Seconds: where prefill seems to cost nothing, its rate still has to be a number."""


class Prefilling(msgspec.Struct, frozen=True):
    """A measurement of one prompt, alone on the engine."""

    tokens: int
    seconds: float
    """Seconds to the first token."""
    cached: int = 0
    """How many of its tokens were cached."""


class Decoding(msgspec.Struct, frozen=True):
    """A measurement of requests that decode together."""

    requests: int
    context: float
    """Tokens of context of all of them together, on average over the steps."""
    seconds: float
    """Seconds of one step."""


class Together(msgspec.Struct, frozen=True):
    """Requests sent at the same moment to an idle engine."""

    requests: int
    tokens: int
    """Tokens of each prompt."""
    cached: int
    seconds: float
    """To the first token, the median of the requests."""


class Fit(msgspec.Struct, frozen=True):
    """The result of a fit: parameters, and how far measurements are from them."""

    params: EngineParams
    prefill_error: float
    """Median of |fitted / measured - 1| over the prompts."""
    decode_error: float


class FitError(ValueError):
    """There are too few measurements for a fit."""


def fit(
    known: EngineParams,
    prefilling: Sequence[Prefilling],
    decoding: Sequence[Decoding],
    together: Sequence[Together] = (),
) -> Fit:
    """Least squares of relative errors, no rate below 0.

    known: block size, number of blocks and limits, which are not fitted. First decoding::

        step = base + request * requests + token * context

    then, with those for each step of at most ``max_num_batched_tokens`` new tokens::

        first token = overhead + overhead token * tokens
                      + (base + request) * steps + new / rate + pair * new * (cached + tokens) / 2

    Then how much of the overhead requests sent together pass one after another: the share of it,
    in twentieths, with which the engine model comes closest.

    What a prompt token costs outside of steps shows in cached prompts only: without any it stays 0,
    and the rate bears it. Raises FitError for fewer than three different prompts or decoding loads.
    """
    if len({each.tokens for each in prefilling}) < 3 or len(set(decoding)) < 3:
        raise FitError("three prompt lengths and three decoding loads are needed; raise --seconds")
    steps = np.array([each.seconds for each in decoding])
    running = np.array([each.requests for each in decoding], dtype=np.float64)
    context = np.array([each.context for each in decoding])
    loads = np.stack([np.ones(len(steps)), running, context], axis=1)
    base, request, token = _not_negative(loads, steps)

    first = np.array([each.seconds for each in prefilling])
    tokens = np.array([each.tokens for each in prefilling], dtype=np.float64)
    cached = np.array([each.cached for each in prefilling], dtype=np.float64)
    new = tokens - cached
    in_steps = (base + request) * np.ceil(new / known.max_num_batched_tokens)
    seen = tokens * bool(cached.any())
    columns = np.stack([np.ones(len(first)), seen, new, new * (cached + tokens) / 2], axis=1)
    found = _not_negative(columns, first - in_steps, first)
    overhead, overhead_token, each_token, pair = found
    each_token = max(each_token, LEAST_PER_TOKEN)
    params = msgspec.structs.replace(
        known,
        step_base_seconds=float(base),
        step_request_seconds=float(request),
        step_token_seconds=float(token),
        prefill_rate=float(1 / each_token),
        step_pair_seconds=float(pair),
        overhead_seconds=float(overhead),
        overhead_token_seconds=float(overhead_token),
    )
    shares = [overhead * (part / 20) for part in range(21)]
    serial = min(shares, key=lambda share: _distance(params, float(share), together))
    params = msgspec.structs.replace(params, overhead_serial_seconds=float(serial))
    fitted_first = columns @ found + in_steps
    fitted_steps = loads @ np.array([base, request, token])
    return Fit(
        params,
        float(np.median(np.abs(fitted_first / first - 1))),
        float(np.median(np.abs(fitted_steps / steps - 1))),
    )


def _distance(params: EngineParams, serial: float, together: Sequence[Together]) -> float:
    """Sum of squared logarithms of simulated over measured."""
    params = msgspec.structs.replace(params, overhead_serial_seconds=serial)
    return sum(log(first_of(params, each) / each.seconds) ** 2 for each in together)


def first_of(params: EngineParams, load: Together) -> float:
    """Median time to first token of such requests on the model, in seconds."""
    engine = Engine(params)
    size = params.block_size
    asked = []
    for number in range(load.requests):
        # Different prompts, each asked before as far as it is cached.
        hashes = range(number * load.tokens, (number + 1) * load.tokens)
        if load.cached:
            engine.add(Request(load.cached // size * size, 1, hashes), 0.0)
        asked.append(Request(load.tokens, ANSWERED, hashes))
    at = 0.0
    while not engine.idle:
        at = engine.step().at
    for request in asked:
        engine.add(request, at + 1)
    while not engine.idle:
        engine.step()
    return median(request.first_token_at - request.arrived for request in asked)


def _not_negative(columns: Floats, values: Floats, scale: Floats | None = None) -> Floats:
    """Coefficients, all at least 0, with the least squared error relative to scale (the values).

    The most negative one is set to 0 and the rest fitted again: for so few columns as good as a
    solver."""
    weight = 1 / (values if scale is None else scale)
    left = [number for number in range(columns.shape[1]) if columns[:, number].any()]
    found = np.zeros(columns.shape[1])
    while left:
        # Columns differ by orders of magnitude; scaled, none is taken for noise.
        chosen = columns[:, left] * weight[:, None]
        size = np.linalg.norm(chosen, axis=0)
        answer = np.linalg.lstsq(chosen / size, values * weight, rcond=None)[0] / size
        if answer.min() >= 0:
            found[left] = answer
            break
        left.pop(int((answer * size).argmin()))
    return found
