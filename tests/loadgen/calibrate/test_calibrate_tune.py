"""What tuning finds in mixed requests, with an engine model in the engine's place."""

from __future__ import annotations

from random import Random

import msgspec

from loadgen.calibrate.check import Asked, Played, agreement, block_hashes, replayed
from loadgen.calibrate.probe import Answered
from loadgen.calibrate.tune import tune
from loadgen.engine import EngineParams

TRUE = EngineParams(
    block_size=32,
    num_blocks=4001,
    max_num_batched_tokens=2048,
    step_base_seconds=0.001,
    prefill_rate=150_000.0,
    step_request_seconds=50e-6,
    step_token_seconds=50e-9,
    step_prefill_seconds=0.0033,
    overhead_seconds=0.0049,
    overhead_serial_seconds=0.002,
    overhead_token_seconds=1e-6,
)
APART = msgspec.structs.replace(
    TRUE, step_prefill_seconds=0.0, overhead_seconds=0.0082, overhead_serial_seconds=0.0082
)
"""As a fit of requests measured apart from each other has it: all that is fixed lies beside the
steps."""


def played(at_a_time: int, seed: int, requests: int = 120) -> Played:
    """Mixed requests with the times that the true engine takes for them."""
    random = Random(seed)
    known: list[list[int]] = []
    asked = []
    for _ in range(requests):
        ids = random.choices(range(5000), k=random.randrange(32, 1200))
        if known and random.random() < 0.6:
            ids = random.choice(known)[: random.randrange(1, 1200)] + ids
        known.append(ids)
        output = random.choice((4, 16, 32))
        waiting = Answered(0.0, 0.0, 0.0, len(ids), output, 0)
        asked.append(Asked(output, waiting, block_hashes(ids, TRUE.block_size)))
    timed = []
    for each, seen in zip(asked, replayed(Played(at_a_time, asked), TRUE), strict=True):
        last = seen.ttft + seen.tpot * (each.output_tokens - 1)
        answered = Answered(
            0.0,
            seen.ttft,
            last,
            each.answered.prompt_tokens,
            each.output_tokens,
            seen.cached_tokens,
        )
        timed.append(msgspec.structs.replace(each, answered=answered))
    return Played(at_a_time, timed)


def test_where_the_time_of_a_prompt_goes_shows_in_mixed_requests() -> None:
    plays = [played(1, 1), played(8, 2)]
    others = [played(1, 3), played(8, 4)]
    before = agreement([others[1]], APART)
    assert max(map(abs, before.errors)) > 0.2
    found = tune(APART, plays)
    assert 0.002 < found.step_prefill_seconds < 0.006
    for other in others:
        p50, p90, tpot = agreement([other], found).errors
        assert abs(p50) < 0.1
        assert abs(p90) < 0.2
        assert abs(tpot) < 0.1


def test_what_is_right_stays_as_it_is() -> None:
    assert agreement([played(8, 5)], TRUE).errors == (0, 0, 0)


def test_a_prompt_in_a_step_holds_up_those_that_decode() -> None:
    """At eight at a time, TPOT grows by what prompts cost in steps."""
    load = played(8, 6)
    without = msgspec.structs.replace(TRUE, step_prefill_seconds=0.0)
    assert agreement([load], without).errors[2] < -0.2
