"""Parameters found again from times that were made with them."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from loadgen.calibrate.check import bunched
from loadgen.calibrate.fit import Decoding, FitError, Prefilling, Together, first_of, fit
from loadgen.calibrate.probe import Answered
from loadgen.engine import Engine, EngineParams, Request

TRUE = EngineParams(
    num_blocks=4001,
    max_num_batched_tokens=2048,
    step_base_seconds=0.006,
    prefill_rate=9000.0,
    step_pair_seconds=2e-9,
    step_request_seconds=300e-6,
    step_token_seconds=60e-9,
    overhead_seconds=0.004,
    overhead_token_seconds=3e-6,
)
KNOWN = EngineParams(num_blocks=4001, max_num_batched_tokens=2048)


def first_token(tokens: int, share: float) -> tuple[float, int]:
    """As the engine model itself has it, with a share of the prompt asked before; and the cached
    tokens."""
    engine = Engine(TRUE)
    for at, length in enumerate((int(tokens * share) or 1, tokens)):
        request = Request(length, 1, range(length))
        engine.add(request, 1000.0 * at)
        while not engine.idle:
            engine.step()
    return request.first_token_at - request.arrived, request.cached_tokens


def measured(
    noise: float, shares: tuple[float, ...] = (0.0, 0.5, 1.0)
) -> tuple[list[Prefilling], list[Decoding]]:
    random = Random(3)
    prefilling = []
    for tokens in (64, 200, 500, 1000, 2000, 4000, 8000, 16_000):
        for share in shares:
            seconds, cached = first_token(tokens, share)
            seconds *= random.uniform(1 - noise, 1 + noise)
            prefilling.append(Prefilling(tokens, seconds, cached))
    decoding = [
        Decoding(
            count,
            count * context,
            (
                TRUE.step_base_seconds
                + TRUE.step_request_seconds * count
                + TRUE.step_token_seconds * count * context
            )
            * random.uniform(1 - noise, 1 + noise),
        )
        for count in (1, 2, 4, 8, 16)
        for context in (50, 3000)
    ]
    return prefilling, decoding


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.02), (0.02, 0.15)])
def test_the_parameters_are_found_again(noise: float, within: float) -> None:
    found = fit(KNOWN, *measured(noise))
    for name in (
        "step_base_seconds",
        "prefill_rate",
        "step_pair_seconds",
        "step_request_seconds",
        "step_token_seconds",
        "overhead_seconds",
        "overhead_token_seconds",
    ):
        assert getattr(found.params, name) == pytest.approx(getattr(TRUE, name), rel=within), name
    assert found.prefill_error < 0.01 + noise
    assert found.params.num_blocks == KNOWN.num_blocks


@pytest.mark.parametrize("serial", [0.0, 0.002, TRUE.overhead_seconds])
def test_what_passes_one_after_another_is_found_again(serial: float) -> None:
    true = msgspec.structs.replace(TRUE, overhead_serial_seconds=serial)
    loads = [
        Together(count, tokens, cached, 0.0)
        for count in (1, 2, 4, 8, 16)
        for tokens, cached in ((32, 16), (2000, 1984))
    ]
    together = [msgspec.structs.replace(load, seconds=first_of(true, load)) for load in loads]
    assert together[9].seconds > together[1].seconds
    found = fit(KNOWN, *measured(0.0), together).params
    assert found.overhead_serial_seconds == pytest.approx(serial, rel=0.1)
    assert fit(KNOWN, *measured(0.0)).params.overhead_serial_seconds == 0


def test_without_cached_prompts_the_rate_bears_what_a_token_costs_outside() -> None:
    """An engine without a prefix cache: the two cannot be told apart, and need not be."""
    params = fit(KNOWN, *measured(0.0, shares=(0.0,))).params
    assert params.overhead_token_seconds == 0
    together = 1 / TRUE.prefill_rate + TRUE.overhead_token_seconds
    assert 1 / params.prefill_rate == pytest.approx(together, rel=0.02)


def test_no_rate_is_negative() -> None:
    """Longer prompts and more requests that come out faster, as noise has it."""
    prefilling = [Prefilling(n, s) for n, s in ((10, 0.03), (100, 0.02), (1000, 0.01))]
    decoding = [Decoding(n, 50.0 * n, s) for n, s in ((1, 0.03), (2, 0.02), (4, 0.01))]
    found = fit(KNOWN, prefilling, decoding)
    assert found.params.step_base_seconds > 0
    assert found.params.step_request_seconds == found.params.step_token_seconds == 0
    assert found.params.prefill_rate > 0


def test_too_little_was_measured() -> None:
    with pytest.raises(FitError, match="three"):
        fit(KNOWN, [Prefilling(10, 0.1)] * 5, [Decoding(1, 10, 0.1)] * 5)


def test_answers_that_came_at_once_are_counted() -> None:
    step = TRUE.step_base_seconds + TRUE.step_request_seconds
    came = [Answered(0.0, 1.0, 1.0 + 31 * step * part, 10, 32, 0) for part in (0.0, 0.05, 0.2, 1.0)]
    single = Answered(0.0, 1.0, 1.0, 10, 1, 0)
    assert bunched([*came, single], TRUE) == 2
