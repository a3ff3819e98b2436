"""LoRA adapters in the simulated engine: places, loading, and who may run beside whom."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.engine import Engine, EngineParams, Request

PARAMS = EngineParams(
    block_size=4,
    num_blocks=101,
    step_base_seconds=1.0,
    prefill_rate=10.0,
    step_request_seconds=0.0,
    step_token_seconds=0.0,
    max_loras=1,
    lora_load_seconds=5.0,
)


def request(adapter: str, output: int = 1) -> Request:
    return Request(10, output, range(2), adapter=adapter)


def drain(engine: Engine) -> None:
    while not engine.idle:
        engine.step()


def test_the_first_request_waits_until_it_is_loaded() -> None:
    engine = Engine(PARAMS)
    waits = []
    for at, adapter in enumerate(("a", "a", "", "b")):
        one = request(adapter)
        engine.add(one, at * 100.0)
        drain(engine)
        waits.append(one.first_token_at - one.arrived)
    # A step of 1 s, 10 tokens at 10 a second of which 8 are cached after the first, and loading.
    assert waits == [pytest.approx(each) for each in (7.0, 1.2, 1.2, 6.2)]
    assert engine.adapters.loads == 2
    assert list(engine.adapters.loaded) == ["b"]


def test_others_overtake_one_that_has_no_place() -> None:
    engine = Engine(PARAMS)
    long, other, same, plain = request("a", 50), request("b"), request("a"), request("")
    for at, each in enumerate((long, other, same, plain)):
        engine.add(each, float(at))
    drain(engine)
    assert same.finished_at < long.finished_at
    assert plain.finished_at < long.finished_at
    assert other.scheduled_at == pytest.approx(long.finished_at)


def test_a_request_that_comes_later_is_admitted_past_one_without_place() -> None:
    """A run of decode steps is cut short for it."""
    engine = Engine(PARAMS)
    long, other, late = request("a", 50), request("b"), request("a")
    engine.add(long, 0.0)
    engine.add(other, 1.0)
    while engine.due < 20.0:
        engine.step()
    engine.add(late, 20.0)
    drain(engine)
    assert late.finished_at < 25.0 < long.finished_at


def test_an_aborted_one_makes_room() -> None:
    engine = Engine(PARAMS)
    long, other = request("a", 50), request("b")
    engine.add(long, 0.0)
    engine.add(other, 1.0)
    while engine.due < 10.0:
        engine.step()
    engine.abort(long, 10.0)
    drain(engine)
    assert other.scheduled_at < 13.0


def test_without_places_given_all_fit() -> None:
    engine = Engine(msgspec.structs.replace(PARAMS, max_loras=0))
    requests = [request(name, 20) for name in "abc"]
    for each in requests:
        engine.add(each, 0.0)
    drain(engine)
    assert len({each.finished_at for each in requests}) < 3
    assert sorted(engine.adapters.loaded) == ["a", "b", "c"]
