"""Blocks that one engine keeps for another, and what the other does with them."""

from __future__ import annotations

from math import inf

import pytest

from loadgen.engine import Engine, EngineParams, Request, Stage

PARAMS = EngineParams(num_blocks=101, max_num_batched_tokens=1024, max_num_seqs=16)


def request(prompt: int, output: int = 4, first: int = 0, **fields: bool) -> Request:
    return Request(prompt, output, range(first, first + prompt // 16), **fields)


def run(engine: Engine) -> None:
    while engine.due < inf:
        engine.step()


def test_kept_blocks_are_held_until_freed() -> None:
    engine = Engine(PARAMS)
    kept = request(800, 1, keep=True)
    engine.add(kept, 0.0)
    run(engine)
    assert kept.stage is Stage.DONE
    assert round(engine.kv_usage * 100) == 50
    # What does not fit beside them waits, and begins when they are free.
    waits = request(1200, first=1000)
    engine.add(waits, 1.0)
    assert engine.due == inf
    engine.free(kept, 5.0)
    run(engine)
    assert waits.scheduled_at == 5.0
    assert engine.kv_usage == 0.0
    engine.free(kept, 6.0)  # twice is once
    assert engine.kv_usage == 0.0


def test_a_fetched_prompt_computes_its_last_token_only() -> None:
    engine = Engine(PARAMS)
    fetches = request(800, remote=True)
    engine.add(fetches, 0.0)
    assert engine.to_fetch == [fetches]
    assert (engine.due, round(engine.kv_usage * 100)) == (inf, 50)
    engine.to_fetch.clear()
    # Others are computed meanwhile.
    other = request(64, first=1000)
    engine.add(other, 0.0)
    run(engine)
    assert other.stage is Stage.DONE
    engine.fetched(fetches, 3.0)
    engine.step()
    step = PARAMS.step_base_seconds + PARAMS.step_request_seconds + 1 / PARAMS.prefill_rate
    assert fetches.first_token_at == pytest.approx(3.0 + step)
    run(engine)
    assert (fetches.cached_tokens, fetches.fetched_tokens) == (799, 799)
    assert engine.counters.prompt_tokens_fetched == 799
    # From now on it is a hit like any other.
    again = request(800)
    engine.add(again, 4.0)
    run(engine)
    assert (again.cached_tokens, again.fetched_tokens) == (784, 0)


def test_only_what_is_not_here_is_fetched() -> None:
    engine = Engine(PARAMS)
    engine.add(request(320), 0.0)
    run(engine)
    fetches = request(800, remote=True)
    engine.add(fetches, 1.0)
    assert (fetches.cached_tokens, fetches.fetched_tokens) == (799, 479)


def test_an_abort_frees_its_blocks_before_during_and_after_the_fetch() -> None:
    engine = Engine(PARAMS)
    big = request(1500, first=1000, remote=True)
    engine.add(big, 0.0)
    behind = request(800, remote=True)
    engine.add(behind, 0.0)
    assert behind.stage is Stage.WAITING
    engine.abort(big, 1.0)
    assert engine.to_fetch == [behind]
    engine.to_fetch.clear()
    assert round(engine.kv_usage * 100) == 50
    engine.fetched(big, 1.0)  # comes too late, and is nobody's
    assert engine.due == inf
    # Another one keeps it from being scheduled at once.
    engine.add(request(64, 50, first=3000), 1.0)
    engine.fetched(behind, 1.0)
    engine.abort(behind, 1.0)
    run(engine)
    assert (behind.aborted, engine.kv_usage) == (True, 0.0)
