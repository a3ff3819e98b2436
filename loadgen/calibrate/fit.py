"""The step-time model of ``EngineParams`` fitted to measurements."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.engine import EngineParams

Floats = npt.NDArray[np.float64]
LEAST_PER_TOKEN = 1e-9
"""Seconds: where prefill seems to cost nothing, its rate still has to be a number."""


class Prefilling(msgspec.Struct, frozen=True):
    """One prompt of which nothing was cached, alone on the engine."""

    tokens: int
    seconds: float
    """To its first token."""


class Decoding(msgspec.Struct, frozen=True):
    """Requests decoding together."""

    requests: int
    context: float
    """Tokens of context of all of them together, on average over the steps."""
    seconds: float
    """Of a step."""


class Fit(msgspec.Struct, frozen=True):
    """What was found."""

    params: EngineParams
    overhead_seconds: float
    """Of a request outside the engine's steps: network, API server, tokeniser. The model has no
    place for it; add it to simulated times to first token."""
    prefill_error: float
    """Median of |fitted / measured - 1| over the prompts."""
    decode_error: float


class FitError(ValueError):
    """Too little was measured."""


def fit(known: EngineParams, prefilling: Sequence[Prefilling], decoding: Sequence[Decoding]) -> Fit:
    """Least squares of relative errors, no rate below 0.

    known: block size, number of blocks and limits, which are not fitted. First decoding::

        step = base + request * requests + token * context

    then, with that base for each step of at most ``max_num_batched_tokens``::

        first token = overhead + base * steps + tokens / rate + pair * tokens^2 / 2

    Raises FitError for fewer than three different prompts or decoding loads.
    """
    if len({each.tokens for each in prefilling}) < 3 or len(set(decoding)) < 3:
        raise FitError("at least three lengths of prompts and three decoding loads are needed")
    steps = np.array([each.seconds for each in decoding])
    running = np.array([each.requests for each in decoding], dtype=np.float64)
    context = np.array([each.context for each in decoding])
    ones = np.ones(len(steps))
    base, request, token = _not_negative(np.stack([ones, running, context], axis=1), steps)

    first = np.array([each.seconds for each in prefilling])
    tokens = np.array([each.tokens for each in prefilling], dtype=np.float64)
    chunks = np.ceil(tokens / known.max_num_batched_tokens)
    # A step without prefill takes base + request; what the API server takes comes on top.
    columns = np.stack([np.ones(len(first)), tokens, tokens * tokens / 2], axis=1)
    rest = first - base * chunks - request
    overhead, each_token, pair = _not_negative(columns, rest, first)
    each_token = max(each_token, LEAST_PER_TOKEN)
    params = msgspec.structs.replace(
        known,
        step_base_seconds=float(base),
        step_request_seconds=float(request),
        step_token_seconds=float(token),
        prefill_rate=float(1 / each_token),
        step_pair_seconds=float(pair),
    )
    fitted_first = columns @ np.array([overhead, each_token, pair]) + base * chunks + request
    fitted_steps = base + request * running + token * context
    return Fit(
        params,
        float(overhead),
        float(np.median(np.abs(fitted_first / first - 1))),
        float(np.median(np.abs(fitted_steps / steps - 1))),
    )


def _not_negative(columns: Floats, values: Floats, scale: Floats | None = None) -> Floats:
    """Coefficients, all at least 0, with the least squared error relative to scale (the values).

    The most negative one is set to 0 and the rest fitted again: for three columns as good as a
    solver."""
    weight = 1 / (values if scale is None else scale)
    left = list(range(columns.shape[1]))
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
