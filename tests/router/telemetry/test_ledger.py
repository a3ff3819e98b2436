"""The reuse ledger's arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.ledger import GAPS, Ledger, deliverable
from router.telemetry.record import Finished

levels = st.floats(-10.0, 250_000.0)
requests = st.builds(
    Finished,
    request_id=st.just("r"),
    prompt_tokens=st.integers(1, 200_000),
    available=levels,
    chosen=levels,
    predicted=levels,
    delivered=st.integers(0, 200_000),
    cache_full=st.booleans(),
)


@given(st.lists(requests, max_size=6))
def test_every_prompt_token_is_accounted_for(done: list[Finished]) -> None:
    ledger = Ledger()
    for one in done:
        ledger.add(one)
    assert ledger.prompt == sum(one.prompt_tokens for one in done)
    assert ledger.delivered == sum(one.delivered for one in done)
    gaps = [getattr(ledger, gap) for gap in GAPS]
    assert ledger.prompt == ledger.delivered + sum(gaps) - ledger.surplus
    assert min(gaps, default=0) >= 0
    assert ledger.surplus >= 0


@given(st.lists(requests, min_size=2, max_size=6))
def test_no_counter_goes_down(done: list[Finished]) -> None:
    names = (*GAPS, *Ledger.__struct_fields__)
    ledger = Ledger()
    before = dict.fromkeys(names, 0)
    for one in done:
        ledger.add(one)
        after = {name: getattr(ledger, name) for name in names}
        assert all(after[name] >= before[name] for name in names)
        before = after


@given(st.lists(requests, max_size=5), st.lists(requests, max_size=5))
def test_merging_is_adding_up(some: list[Finished], more: list[Finished]) -> None:
    apart, together, other = Ledger(), Ledger(), Ledger()
    for one in some:
        apart.add(one)
        together.add(one)
    for one in more:
        other.add(one)
        together.add(one)
    apart.merge(other)
    assert apart == together


def test_each_gap_has_its_cause() -> None:
    ledger = Ledger()
    ledger.add(
        Finished("r", prompt_tokens=1000, available=900, chosen=700.9, predicted=688, delivered=608)
    )
    assert (ledger.no_holder, ledger.load_shed, ledger.rounding) == (100, 200, 12)
    assert (ledger.stale_index, ledger.eviction, ledger.surplus) == (80, 0, 0)
    assert ledger.hit_rate == 0.608
    ledger.add(
        Finished("r", prompt_tokens=100, available=96, chosen=96, predicted=96, cache_full=True,
                 delivered=0)
    )  # fmt: skip
    assert (ledger.stale_index, ledger.eviction) == (80, 96)
    ledger.add(
        Finished("r", prompt_tokens=100, available=96, chosen=96, predicted=96, delivered=32,
                 rendered_differently=True)
    )  # fmt: skip
    assert (ledger.stale_index, ledger.rendered_differently) == (80, 64)


def test_an_engine_that_reports_nothing_stays_out() -> None:
    ledger = Ledger()
    ledger.add(Finished("r", prompt_tokens=500, available=400, chosen=400, predicted=400))
    assert ledger == Ledger(unreported=500)
    assert ledger.hit_rate is None


@given(st.floats(0, 1e5), st.floats(0, 1e5), st.integers(0, 256))
def test_an_engine_delivers_whole_blocks_and_never_a_whole_prompt(
    held: float, prompt: float, block: int
) -> None:
    most = deliverable(held, prompt, block)
    assert 0 <= most <= held
    assert most <= max(0, prompt - 1)
    if block > 1:
        assert most % block == 0
        assert most + block > min(held, prompt - 1) or most == 0


def test_deliverable_as_vllm_counts() -> None:
    assert deliverable(64, 64, 16) == 48
    assert deliverable(64, 65, 16) == 64
    assert deliverable(100.7, 5000, 16) == 96
    assert deliverable(100, 5000, 1) == 100
    assert deliverable(10, 0, 16) == 0
