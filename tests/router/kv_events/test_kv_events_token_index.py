"""The event-fed index: copies, parents, adapters, salts, groups, ranks, media, prompts on the way."""

from __future__ import annotations

from array import array

import pytest
from exact_events import BLOCK, NaiveHeld, batch, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from router.kv_events.decode import Cleared, Removed
from router.kv_events.token_chain import chain, seed
from router.kv_events.token_index import WORTH, TokenIndex
from router.types import Chain

A = list(range(12))


def hashes(tokens: list[int], adapter: str = "", salt: str = "") -> Chain:
    return chain(array("I", tokens).tobytes(), BLOCK, seed(adapter, salt))


def depth(index: TokenIndex, tokens: list[int], slot: int = 0, **names: str) -> float:
    for held, mask in index.match(hashes(tokens, **names), BLOCK, -1):
        if mask >> slot & 1:
            return held
    return 0.0


@pytest.fixture
def index() -> TokenIndex:
    made = TokenIndex()
    for slot in range(3):
        made.add_replica(slot)
        made.empty(slot, 0, complete=True)
    return made


def test_a_prompt_is_found_as_deep_as_it_is_held(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([11, 12, 13], None, A)))
    index.apply(1, 0, batch(stored([b"x", b"y"], None, A[:8])))
    assert sorted(index.match(hashes([*A, 99, 99, 99, 99]), BLOCK, 7), reverse=True) == [
        (12.0, 0b01),
        (8.0, 0b10),
    ]
    assert depth(index, A[:9]) == 8
    assert depth(index, [5, *A[1:]]) == 0


def test_only_replicas_asked_about_are_told(index: TokenIndex) -> None:
    for slot in range(3):
        index.apply(slot, 0, batch(stored([1, 2, 3], None, A)))
    assert index.match(hashes(A), BLOCK, 0b101) == [(12.0, 0b101)]


def test_each_copy_is_removed_on_its_own(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([1, 2], None, A[:8]), stored([2], 1, A[4:8])))
    index.apply(0, 0, batch(Removed([2])))
    assert depth(index, A) == 8
    index.apply(0, 0, batch(Removed([2])))
    assert depth(index, A) == 4
    index.apply(0, 0, batch(Removed([1])))
    assert index.blocks == 0


def test_blocks_below_an_unknown_one_are_not_found_until_it_is_told(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([2, 3], 1, A[4:])))
    assert depth(index, A) == 0
    assert index.strays(0) == 1
    index.apply(0, 0, batch(stored([1, 2, 3], None, A)))
    assert depth(index, A) == 12
    index.apply(0, 0, batch(Removed([3]), Removed([3]), Removed([2]), Removed([2]), Removed([1])))
    assert index.blocks == 0


def test_adapters_and_salts_are_prompts_of_their_own(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([1], None, A[:4], lora_name="ada", extra_keys=[["ada"]])))
    index.apply(0, 0, batch(stored([2], None, A[:4], extra_keys=[["s1"]])))
    index.apply(0, 0, batch(stored([3], None, A[:4], lora_name="ada", extra_keys=[["ada", "s2"]])))
    assert depth(index, A) == 0
    assert depth(index, A, adapter="ada") == 4
    assert depth(index, A, salt="s1") == 4
    assert depth(index, A, adapter="ada", salt="s2") == 4
    assert depth(index, A, adapter="ada", salt="s1") == 0
    assert index.salts_told(0)


def test_media_make_a_block_another_one(index: TokenIndex) -> None:
    media = [None, [["image-1", 3]], None]
    index.apply(0, 0, batch(stored([1, 2, 3], None, A, extra_keys=media)))
    assert depth(index, A) == 4


def test_only_one_group_of_full_attention_counts(index: TokenIndex) -> None:
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 2, "kv_cache_spec_kind": "full_attention"}
    other = {"group_idx": 3, "kv_cache_spec_kind": "full_attention"}
    index.apply(0, 0, batch(stored([1, 2, 3], None, A, **window)))
    assert depth(index, A) == 0
    index.apply(
        0, 0, batch(stored([1, 2, 3], None, A, **full), stored([1, 2], None, A[:8], **other))
    )
    assert depth(index, A) == 12
    index.apply(0, 0, batch(Removed([2], group_idx=1), Removed([2], group_idx=3)))
    assert depth(index, A) == 12
    index.apply(0, 0, batch(Removed([2], group_idx=2)))
    assert depth(index, A) == 4


def test_a_replica_with_several_ranks_is_as_deep_as_its_best(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([1], None, A[:4])))
    index.apply(0, 1, batch(stored([1, 2, 3], None, A)))
    index.apply(1, 0, batch(stored([1, 2], None, A[:8])))
    assert depth(index, A, slot=0) == 12
    assert depth(index, A, slot=1) == 8
    # Rank 0 has the beginning, rank 1 no more: together they serve nothing.
    index.apply(0, 1, batch(Removed([1])))
    assert depth(index, A, slot=0) == 4


def test_slower_media_count_for_less(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([1], None, A[:4], medium="GPU")))
    index.apply(0, 0, batch(stored([1, 2], None, A[:8], medium="CPU")))
    assert depth(index, A) == pytest.approx(4 * (1 + WORTH["CPU"]))
    index.apply(0, 0, batch(Removed([1], medium="GPU")))
    assert depth(index, A) == pytest.approx(8 * WORTH["CPU"])


def test_a_cleared_cache_is_empty_and_known(index: TokenIndex) -> None:
    index.empty(0, 0, complete=False)
    index.apply(0, 0, batch(stored([1, 2, 3], None, A)))
    assert not index.complete(0)
    index.apply(0, 0, batch(Cleared(), stored([1], None, A[:4])))
    assert depth(index, A) == 4
    assert index.complete(0)


def test_a_prompt_on_its_way_counts_until_told_or_given_up(index: TokenIndex) -> None:
    index.sized(0, BLOCK)
    first = index.expect(0, hashes(A))
    second = index.expect(0, hashes(A))
    assert depth(index, A) == 12
    index.give_up(first)
    assert depth(index, A) == 12
    index.apply(0, 0, batch(stored([1, 2], None, A[:8])))
    index.give_up(second)
    assert depth(index, A) == 8
    index.apply(0, 0, batch(Removed([2]), Removed([1])))
    assert index.blocks == 0


def test_what_no_event_told_is_learned_from_answers_where_history_is_gone(
    index: TokenIndex,
) -> None:
    index.empty(0, 0, complete=False)
    index.sized(0, BLOCK)
    index.answered(0, hashes([*A, 1, 2, 3, 4]), 0, 12)
    assert depth(index, A) == 12
    index.answered(0, hashes([*A, 1, 2, 3, 4]), 12, 4)
    assert depth(index, A) == 4
    index.apply(
        0, 0, batch(Removed([77]))
    )  # some block left: the only one learned, as far as known
    assert depth(index, A) == 0


def test_a_complete_replica_learns_nothing_from_answers(index: TokenIndex) -> None:
    index.sized(0, BLOCK)
    index.answered(0, hashes(A), 0, 12)
    assert depth(index, A) == 0


def test_a_copy_told_twice_is_taken_back_when_an_answer_shows_that_it_is_gone(
    index: TokenIndex,
) -> None:
    event = stored([1, 2], None, A[:8])
    index.apply(0, 0, batch(event, event))  # kv_cache_report_mode=full
    index.apply(0, 0, batch(Removed([2])))
    assert depth(index, A) == 8  # wrong, and cannot be known
    index.apply(0, 0, batch(stored([2], 1, A[4:8])))  # computed anew
    index.answered(0, hashes(A), 8, 4)
    index.apply(0, 0, batch(Removed([2])))
    assert depth(index, A) == 4


def test_a_replica_that_left_leaves_nothing(index: TokenIndex) -> None:
    index.apply(0, 0, batch(stored([1, 2, 3], None, A)))
    index.apply(1, 0, batch(stored([1], None, A[:4])))
    index.expect(0, hashes([7] * 8))
    index.remove_replica(0)
    assert index.match(hashes(A), BLOCK, -1) == [(4.0, 0b10)]
    assert index.blocks == 1
    with pytest.raises(ValueError, match="slot 1 is taken"):
        index.add_replica(1)


def test_blocks_of_a_guessed_size_give_way_to_what_events_tell(index: TokenIndex) -> None:
    index.sized(0, 16)
    index.apply(0, 0, batch(stored([1, 2, 3], None, A)))
    assert index.block(0) == BLOCK
    assert index.sizes == {16: 0, BLOCK: 1}


names = st.sampled_from([1, 2, 3, 2**64 - 1, b"a" * 32, b"b" * 32])
step = st.one_of(
    st.tuples(
        st.just("store"),
        st.lists(names, min_size=1, max_size=3, unique=True),
        st.one_of(st.none(), names),
        st.lists(st.integers(0, 1), min_size=3, max_size=3),
    ),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("expect"), st.integers(0, 7)),
    st.tuples(st.just("give up"), st.integers(0, 3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(step, max_size=30))
def test_it_equals_a_naive_model(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Engines never give one name to two prompts at a time, so a store under a name that is there
    repeats what is there."""
    index = TokenIndex()
    index.add_replica(0)
    index.sized(0, BLOCK)
    naive = NaiveHeld()
    coming = []
    prompts = [[bit >> 2 & 1] * 4 + [bit >> 1 & 1] * 4 + [bit & 1] * 4 for bit in range(8)]
    for kind, *rest in steps:
        if kind == "store":
            fresh, parent, bits = rest
            if any(naive.prefix(name) is not None for name in fresh) or parent in fresh:
                continue
            event = stored(fresh, parent, [bit for bit in bits[: len(fresh)] for _ in range(4)])
            naive.store(event)
            index.apply(0, 0, batch(event))
        elif kind == "remove":
            event_gone = Removed([rest[0]])
            naive.remove(event_gone)
            index.apply(0, 0, batch(event_gone))
        elif kind == "expect":
            coming.append(index.expect(0, hashes(prompts[rest[0]])))
        elif len(coming) > rest[0]:
            index.give_up(coming.pop(rest[0]))
    for one in coming:
        index.give_up(one)
    for prompt in prompts:
        assert depth(index, prompt) == naive.depth(prompt, BLOCK)
    for name, _ in list(naive.copies):
        index.apply(0, 0, batch(Removed([name])))
    assert index.blocks == 0
