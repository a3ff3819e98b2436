from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from router.scheduling.accounting import charge, finished, first_token, prefill_done, refund
from router.types import Load


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.booleans()), max_size=30
    ),
    seed=st.integers(),
)
def test_books_return_to_zero(requests: list[tuple[int, int, bool]], seed: int) -> None:
    load, rng, now = Load(prefill_rate=3333.3), random.Random(seed), 5.0
    todo = [[float(u), float(u + more), answered, 0] for u, more, answered in requests]
    while todo:
        now += rng.random()
        request = rng.choice(todo)
        uncached, tokens, answered, stage = request
        request[3] += 1
        if stage == 0:
            charge(load, uncached, tokens, now)
            assert load.busy_until >= now + uncached / load.prefill_rate - 1e-9
        elif not answered:
            refund(load, uncached, tokens, now)
            todo.remove(request)
        elif stage == 1:
            first_token(load, uncached, now)
        else:
            finished(load, uncached, tokens)
            todo.remove(request)
        assert load.queued_tokens >= 0
        assert load.in_flight >= 0
    assert (load.queued_tokens, load.in_flight) == (0.0, 0)
    assert (load.context_tokens, load.kv_tokens) == (0.0, 0.0)
    assert load.busy_until <= now


def test_the_clock_is_set_by_each_first_token() -> None:
    load = Load(prefill_rate=1000.0)
    charge(load, 2000.0, 2000.0, 10.0)
    charge(load, 1000.0, 1000.0, 10.0)
    assert load.busy_until == 13.0
    first_token(load, 2000.0, 11.0)
    assert load.busy_until == 12.0
    charge(load, 1000.0, 1000.0, 11.5)
    first_token(load, 1000.0, 15.0)
    assert load.busy_until == 16.0, "the replica is slower than believed"
    first_token(load, 1000.0, 15.5)
    assert load.busy_until == 15.5
    charge(load, 500.0, 600.0, 20.0)
    assert load.busy_until == 20.5


def test_what_is_gone_says_nothing_of_what_is_left() -> None:
    load = Load(prefill_rate=1000.0)
    for uncached in (2000.0, 1000.0, 500.0):
        charge(load, uncached, uncached, 10.0)
    refund(load, 2000.0, 2000.0, 13.0)
    assert load.busy_until == 13.5
    prefill_done(load, 1000.0, 13.2)
    assert load.busy_until == 13.5
    refund(load, 500.0, 500.0, 13.4)
    assert load.busy_until == 13.4
