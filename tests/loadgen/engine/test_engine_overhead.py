"""What a request costs before the engine's scheduler knows of it."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.engine import Engine, EngineParams, Request, Stage

PLAIN = EngineParams(
    block_size=4,
    num_blocks=101,
    max_num_batched_tokens=512,
    step_base_seconds=1.0,
    prefill_rate=10.0,
    step_request_seconds=0.0,
    step_token_seconds=0.0,
)
SLOW = msgspec.structs.replace(PLAIN, overhead_seconds=0.25, overhead_token_seconds=0.01)


def drain(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


def test_it_comes_before_the_first_step() -> None:
    engine, request = Engine(SLOW), Request(20, 1, range(5))
    engine.add(request, 3.0)
    assert engine.due == pytest.approx(3 + 0.25 + 0.2)
    assert not engine.idle
    assert not engine.waiting
    assert engine.step().steps == 0
    assert list(engine.running) == [request]
    drain(engine)
    assert request.first_token_at == pytest.approx(3.45 + 1 + 20 / 10)
    assert (request.arrived, request.queued_at) == (3.0, pytest.approx(3.45))


def test_cached_tokens_cost_it_too() -> None:
    engine = Engine(SLOW)
    engine.add(Request(20, 1, range(5)), 0.0)
    drain(engine)
    again = Request(20, 1, range(5))
    engine.add(again, 100.0)
    drain(engine)
    assert again.cached_tokens == 16
    assert again.first_token_at == pytest.approx(100 + 0.25 + 0.2 + 1 + 4 / 10)


def test_a_part_passes_one_after_another() -> None:
    params = msgspec.structs.replace(SLOW, overhead_serial_seconds=0.1)
    engine = Engine(params)
    long, short, late = (Request(tokens, 1, range(50)) for tokens in (200, 8, 8))
    engine.add(long, 0.0)
    engine.add(short, 0.5)
    engine.add(late, 50.0)
    while engine.due < 50.0:
        engine.step()
    drain(engine)
    assert long.queued_at == pytest.approx(0.25 + 2)
    # The long one's tokens and its 0.1 s come first.
    assert short.queued_at == pytest.approx(2.1 + 0.25 + 0.08)
    # The step in progress ends first: 2.25 + 1 + 20 s.
    assert short.scheduled_at == pytest.approx(23.25)
    assert late.queued_at == pytest.approx(50.33)


def test_the_part_is_no_more_than_the_whole() -> None:
    with pytest.raises(ValueError, match="overhead_serial_seconds"):
        msgspec.structs.replace(SLOW, overhead_serial_seconds=0.3)


def test_what_runs_goes_on_meanwhile() -> None:
    """The decode run is cut where the request is queued, not where it was added."""
    engine = Engine(SLOW)
    first, second = Request(4, 50, [1]), Request(5, 1, [2])
    engine.add(first, 0.0)
    engine.step()
    began = engine.due
    engine.step()
    engine.add(second, began + 0.9)
    assert engine.due == pytest.approx(began + 0.9 + 0.3)
    engine.step()
    # Queued in the second decode step, which ends first.
    assert engine.due == pytest.approx(began + 2)
    assert engine.step().steps == 2
    drain(engine)
    assert second.first_token_at == pytest.approx(began + 2 + 1 + 5 / 10)
    assert first.finished_at == pytest.approx(began + 49 + 0.5)


def test_none_changes_nothing() -> None:
    engine, request = Engine(PLAIN), Request(20, 1, range(5))
    engine.add(request, 3.0)
    assert list(engine.running) == [request]
    assert engine.due == pytest.approx(3 + 1 + 20 / 10)
    assert request.queued_at == 3.0


def test_one_that_is_given_up_before_it_is_queued() -> None:
    engine = Engine(SLOW)
    one, other = Request(20, 1, range(5)), Request(40, 1, range(5, 15))
    engine.add(one, 0.0)
    engine.add(other, 0.0)
    engine.abort(one, 0.1)
    assert (one.stage, one.aborted, one.finished_at) == (Stage.DONE, True, 0.1)
    # It was being read when it was given up.
    assert engine.due == pytest.approx(0.2 + 0.25 + 0.4)
    drain(engine)
    assert other.first_token_at == pytest.approx(0.85 + 1 + 4)
    assert engine.counters.aborted == 1
    engine.abort(other, 9.0)
    assert engine.idle


@pytest.mark.parametrize("field", ["overhead_seconds", "overhead_token_seconds"])
def test_it_is_not_negative(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        msgspec.structs.replace(PLAIN, **{field: -1e-6})
