from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.external_load import ExternalLoad
from router.scheduling.accounting import charge, finished, first_token
from router.types import Load


def test_what_the_engine_counts_beyond_the_books_is_added_after_two_readings() -> None:
    load, external = Load(), ExternalLoad()
    charge(load, 100, 100, 0.0)
    external.observe(load, 4, 2, 1, 40)
    assert load.in_flight == 1
    external.observe(load, 4, 2, 1, 40)
    assert load.in_flight == 6
    assert external.own(load) == 1
    # 2 wait, 5 of 6 are foreign
    assert load.queued_tokens == 100 + round(2 * 5 / 6 * 40)


def test_the_books_stay_right_whatever_comes_in_between() -> None:
    load, external = Load(), ExternalLoad()
    for _ in range(2):
        external.observe(load, 3, 0, 0, 10)
    charge(load, 50, 70, 0.0)
    assert load.in_flight == 4
    for _ in range(2):
        external.observe(load, 2, 0, 1, 10)
    assert (load.in_flight, external.own(load)) == (2, 1)
    first_token(load, 50, 1.0)
    finished(load, 50, 70)
    external.withdraw(load)
    assert (load.in_flight, load.queued_tokens, load.context_tokens) == (0, 0.0, 0.0)


def test_requests_the_engine_does_not_count_yet_make_nothing_negative() -> None:
    load, external = Load(), ExternalLoad()
    for _ in range(5):
        charge(load, 10, 10, 0.0)
    for _ in range(2):
        external.observe(load, 1, 0, 5, 10)
    assert (load.in_flight, external.requests) == (5, 0)


def test_a_request_that_just_ended_is_not_taken_for_a_foreign_one() -> None:
    load, external = Load(), ExternalLoad()
    for engine_sees in (0, 6, 0, 6, 0):
        external.observe(load, engine_sees, 0, 0, 10)
        assert load.in_flight == 0


Steps = st.lists(
    st.one_of(
        st.just(("route",)),
        st.just(("finish",)),
        st.just(("withdraw",)),
        st.tuples(st.just("observe"), st.integers(0, 50), st.integers(0, 50)),
    ),
    max_size=60,
)


@given(Steps)
def test_taken_out_again_it_leaves_exactly_the_books(steps: list[tuple[object, ...]]) -> None:
    load, external, own = Load(), ExternalLoad(), 0
    for step in steps:
        if step[0] == "route":
            charge(load, 7, 9, 0.0)
            own += 1
        elif step[0] == "finish" and own:
            first_token(load, 7, 0.0)
            finished(load, 7, 9)
            own -= 1
        elif step[0] == "withdraw":
            external.withdraw(load)
        elif step[0] == "observe":
            external.observe(load, float(str(step[1])), float(str(step[2])), own, 13.7)
        assert external.own(load) == own
        assert load.in_flight >= own
        assert load.queued_tokens == own * 7 + external.tokens
    external.withdraw(load)
    assert (load.in_flight, load.queued_tokens) == (own, own * 7)
