"""The engine's schedule: times, order, limits, and what must always hold."""

from itertools import count
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.engine import Engine, EngineParams, Request, Stage

SIMPLE = EngineParams(
    block_size=4,
    num_blocks=101,
    max_num_seqs=4,
    max_num_batched_tokens=16,
    step_base_seconds=1.0,
    prefill_rate=10.0,
    step_request_seconds=0.1,
    step_token_seconds=0.01,
)
_fresh = count(1_000_000)


def make(prompt, output, hashes=None, **more):
    if hashes is None:
        hashes = [next(_fresh) for _ in range(prompt // 4)]
    return Request(prompt, output, hashes, **more)


def drain(engine):
    results = []
    while not engine.idle:
        results.append(engine.step())
    return results


def test_the_time_of_every_step():
    engine = Engine(SIMPLE)
    request = make(20, 3)
    engine.add(request, 5.0)
    assert engine.due == pytest.approx(5 + 1 + 16 / 10 + 0.1)  # first chunk: the whole budget
    engine.step()
    assert engine.due == pytest.approx(7.7 + 1 + 4 / 10 + 0.1)
    assert engine.step().first_tokens == [request]
    # two decode steps in one run: contexts of 20 and 21 tokens
    (last,) = drain(engine)
    assert last.steps == 2
    assert last.at == pytest.approx(9.2 + (1 + 0.1 + 0.2) + (1 + 0.1 + 0.21))
    assert request.finished_at == last.at
    assert request.first_token_at == pytest.approx(9.2)


def test_a_run_is_cut_at_the_step_in_progress():
    engine = Engine(SIMPLE)
    first, second = make(4, 50), make(4, 1)
    engine.add(first, 0.0)
    engine.step()
    start = 1.5
    steps = [1.1 + 0.01 * (4 + position) for position in range(10)]
    engine.add(second, start + sum(steps[:3]) + 0.5)
    assert engine.due == pytest.approx(start + sum(steps[:4]))
    assert engine.step().steps == 4
    assert engine.emitted(first) == 5
    assert engine.step().first_tokens == [second]


def test_runs_do_not_change_what_happens():
    """One step at a time or many at once: the same times, hits and preemptions."""

    def run(max_run):
        engine = Engine(SIMPLE, max_run=max_run)
        requests = []
        for number in range(30):
            hashes = [number % 3 * 100 + position for position in range(7)]
            requests.append(Request(24 + number % 5, 50 + 37 * number % 120, hashes))
            at = number * 3.3
            while engine.due <= at:
                engine.step()
            engine.add(requests[-1], at)
        drain(engine)
        return requests, engine.counters

    one, single = run(1)
    many, runs = run(1 << 60)
    for left, right in zip(one, many, strict=True):
        assert left.cached_tokens == right.cached_tokens
        assert left.preemptions == right.preemptions
        assert left.finished_at == pytest.approx(right.finished_at)
        assert left.first_token_at == pytest.approx(right.first_token_at)
    assert single == runs
    assert single.preemptions > 0


def test_a_repeat_recomputes_its_last_token():
    engine = Engine(SIMPLE)
    for prompt, cached in ((16, 12), (17, 16), (19, 16)):
        hashes = [next(_fresh) for _ in range(4)]
        engine.add(make(prompt, 1, hashes), 0.0)
        drain(engine)
        again = make(prompt, 1, hashes)
        engine.add(again, 0.0)
        drain(engine)
        assert again.cached_tokens == cached


def test_the_answer_is_cached_for_the_next_turn():
    engine = Engine(SIMPLE)
    hashes = [next(_fresh) for _ in range(6)]
    engine.add(Request(6, 11, hashes[:1], hashes[1:]), 0.0)
    drain(engine)
    following = Request(24, 1, hashes)
    engine.add(following, 0.0)
    drain(engine)
    # 6 + 11 tokens, of which the last was emitted but never computed: four full blocks
    assert following.cached_tokens == 16


def test_first_come_first_served_up_to_max_num_seqs():
    engine = Engine(SIMPLE)
    requests = [make(3, 5) for _ in range(6)]
    for request in requests:
        engine.add(request, 0.0)
    engine.step()
    assert list(engine.running) == requests[:4]
    assert list(engine.waiting) == requests[4:]
    finished = [request for result in drain(engine) for request in result.finished]
    assert finished == requests


def test_a_request_that_does_not_fit_waits():
    engine = Engine(SIMPLE)
    first, second = make(200, 100), make(240, 1)
    engine.add(first, 0.0)
    engine.add(second, 0.0)
    for _ in range(13):
        engine.step()
    assert first.stage is Stage.DECODE
    assert second.stage is Stage.WAITING
    drain(engine)
    assert second.finished_at > first.finished_at
    assert second.preemptions == 0


def test_the_latest_is_preempted_when_blocks_run_out():
    engine = Engine(SIMPLE)
    first, second = make(180, 100), make(180, 100)
    engine.add(first, 0.0)
    engine.add(second, 0.0)
    drain(engine)
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert engine.counters.preemptions == 1
    assert second.outputs == 100
    assert engine.counters.generation_tokens == 200
    assert engine.counters.prefix_queries == 360


@pytest.mark.parametrize("after", [0, 1, 2, 14, 15, 30])
def test_abort_gives_everything_back(after):
    engine = Engine(SIMPLE, max_run=1)
    staying, leaving, queued = make(20, 30), make(40, 30), make(8, 2)
    for request in (staying, leaving, queued):
        engine.add(request, 0.0)
    for _ in range(after):
        engine.step()
    engine.abort(leaving, engine.due - 0.001)
    results = drain(engine)
    assert leaving.aborted
    assert leaving not in [request for result in results for request in result.finished]
    assert not staying.aborted
    assert staying.outputs == 30
    assert len(engine.pool.free) == engine.pool.total
    assert engine.kv_usage == 0


def test_what_can_never_run_is_refused():
    engine = Engine(SIMPLE)
    with pytest.raises(ValueError, match="400 this engine can hold"):
        engine.add(make(399, 2), 0.0)
    with pytest.raises(ValueError, match="block hashes"):
        engine.add(make(8, 1, hashes=[1]), 0.0)
    with pytest.raises(ValueError, match="at least one"):
        engine.add(make(4, 0), 0.0)
    with pytest.raises(RuntimeError, match="idle"):
        engine.step()


def test_reset_forgets_unless_blocks_are_in_use():
    engine = Engine(SIMPLE)
    hashes = [next(_fresh) for _ in range(4)]
    engine.add(make(17, 3, hashes), 0.0)
    assert not engine.reset_cache()
    drain(engine)
    assert engine.reset_cache()
    again = make(17, 1, hashes)
    engine.add(again, 0.0)
    drain(engine)
    assert again.cached_tokens == 0


class Mirror:
    """Counts what an observer is told."""

    def __init__(self):
        self.held = {}

    def stored(self, request, first, end):
        keys = [*request.hashes[: request.prompt_tokens // 4], *request.output_hashes]
        for key in keys[first:end]:
            self.held[key] = self.held.get(key, 0) + 1

    def removed(self, key):
        self.held[key] -= 1
        if not self.held[key]:
            del self.held[key]

    def cleared(self):
        self.held.clear()


arrivals = st.lists(
    st.tuples(
        st.integers(0, 4),  # family of prompts
        st.integers(1, 60),  # prompt tokens
        st.integers(1, 40),  # output tokens
        st.floats(0, 30),  # pause before it
        st.booleans(),  # abort an earlier one
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(arrivals, st.sampled_from([1, 3, 1 << 60]), st.integers(27, 40))
def test_invariants(arrivals, max_run, blocks):
    mirror = Mirror()
    params = EngineParams(
        block_size=4,
        num_blocks=blocks,
        max_num_seqs=5,
        max_num_batched_tokens=16,
        step_base_seconds=0.5,
        prefill_rate=10.0,
    )
    engine = Engine(params, max_run=max_run, observer=mirror)
    now, requests, finished = 0.0, [], []

    def check(result):
        finished.extend(result.finished)
        pool = engine.pool
        assert min(pool.references) >= 0
        held = [block for request in engine.running for block in request.blocks]
        assert sum(pool.references) == len(held)
        assert len(pool.free) + len(set(held)) == pool.total
        assert set(pool.free).isdisjoint(held)
        assert len(engine.running) <= params.max_num_seqs
        decoding = [r for r in engine.running if r.stage is Stage.DECODE]
        assert engine._decoding == len(decoding)
        assert engine._context == sum(r.prompt_tokens + engine.emitted(r) - 1 for r in decoding)
        for request in decoding:
            assert len(request.blocks) * 4 >= request.prompt_tokens + engine.emitted(request) - 1

    for family, prompt, output, pause, abort in arrivals:
        now += pause
        while engine.due <= now:
            check(engine.step())
        keys = [family * 1000 + position + 1 for position in range(30)]
        full = prompt // 4
        requests.append(Request(prompt, output, keys[:full], keys[full:]))
        engine.add(requests[-1], now)
        if abort:
            engine.abort(requests[len(requests) // 2], now)
    while engine.due < inf:
        check(engine.step())
    assert not engine.waiting
    assert not engine.running
    for request in requests:
        assert request.stage is Stage.DONE
        assert request.blocks == []
        assert request.aborted == (request not in finished)
        if not request.aborted:
            assert engine.emitted(request) == request.output_tokens
            assert 0 <= request.cached_tokens < request.prompt_tokens
    assert len(engine.pool.free) == engine.pool.total
    copies = {key: 1 + len(engine.pool.copies.get(key, ())) for key in engine.pool.cached}
    assert copies == mirror.held
