"""The event-fed index: copies, parents, adapters, salts, groups, ranks, media, prompts on the
way."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from exact_events import BLOCK, NaiveHeld, batch, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from router.kv_events.decode import Cleared, Removed, Stored
from router.kv_events.token_chain import chain, seed
from router.kv_events.token_index import TokenIndex
from router.types import Chain, TierShare

A = list(range(12))


def hashes(tokens: list[int], adapter: str = "", salt: str = "") -> Chain:
    return chain(array("I", tokens).tobytes(), BLOCK, seed(adapter, salt))


def depth(index: TokenIndex, tokens: list[int], slot: int = 0, **names: str) -> float:
    for held, mask in index.match(hashes(tokens, **names), BLOCK, -1):
        if mask >> slot & 1:
            return held
    return 0.0


def in_tiers(index: TokenIndex, tokens: list[int], slot: int = 0) -> dict[str, float]:
    """What a replica holds of a prompt in tiers, by medium."""
    behind: dict[int, TierShare] = {}
    index.match(hashes(tokens), BLOCK, -1, behind)
    return dict(behind[slot].media) if slot in behind else {}


@pytest.fixture
def index() -> TokenIndex:
    made = TokenIndex()
    for slot in range(3):
        made.add_replica(slot)
        made.empty(slot, complete=True)
    return made


def test_a_prompt_is_found_as_deep_as_it_is_held(index: TokenIndex) -> None:
    index.apply(0, batch(stored([11, 12, 13], None, A)))
    index.apply(1, batch(stored([b"x", b"y"], None, A[:8])))
    assert sorted(index.match(hashes([*A, 99, 99, 99, 99]), BLOCK, 7), reverse=True) == [
        (12.0, 0b01),
        (8.0, 0b10),
    ]
    assert depth(index, A[:9]) == 8
    assert depth(index, [5, *A[1:]]) == 0


def test_only_replicas_asked_about_are_told(index: TokenIndex) -> None:
    for slot in range(3):
        index.apply(slot, batch(stored([1, 2, 3], None, A)))
    assert index.match(hashes(A), BLOCK, 0b101) == [(12.0, 0b101)]


def test_each_copy_is_removed_on_its_own(index: TokenIndex) -> None:
    index.apply(0, batch(stored([1, 2], None, A[:8]), stored([2], 1, A[4:8])))
    index.apply(0, batch(Removed([2])))
    assert depth(index, A) == 8
    index.apply(0, batch(Removed([2])))
    assert depth(index, A) == 4
    index.apply(0, batch(Removed([1])))
    assert index.blocks == 0


def test_blocks_below_an_unknown_one_are_not_found_until_it_is_told(index: TokenIndex) -> None:
    index.apply(0, batch(stored([2, 3], 1, A[4:])))
    assert depth(index, A) == 0
    assert index.strays(0) == 1
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    assert depth(index, A) == 12
    index.apply(0, batch(Removed([3]), Removed([3]), Removed([2]), Removed([2]), Removed([1])))
    assert index.blocks == 0


def test_adapters_and_salts_are_prompts_of_their_own(index: TokenIndex) -> None:
    index.apply(0, batch(stored([1], None, A[:4], lora_name="ada", extra_keys=[["ada"]])))
    index.apply(0, batch(stored([2], None, A[:4], extra_keys=[["s1"]])))
    index.apply(0, batch(stored([3], None, A[:4], lora_name="ada", extra_keys=[["ada", "s2"]])))
    assert depth(index, A) == 0
    assert depth(index, A, adapter="ada") == 4
    assert depth(index, A, salt="s1") == 4
    assert depth(index, A, adapter="ada", salt="s2") == 4
    assert depth(index, A, adapter="ada", salt="s1") == 0
    assert index.salts_told(0)


def test_media_make_a_block_another_one(index: TokenIndex) -> None:
    media = [None, [["image-1", 3]], None]
    index.apply(0, batch(stored([1, 2, 3], None, A, extra_keys=media)))
    assert depth(index, A) == 4


def test_only_one_group_of_full_attention_counts(index: TokenIndex) -> None:
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 2, "kv_cache_spec_kind": "full_attention"}
    other = {"group_idx": 3, "kv_cache_spec_kind": "full_attention"}
    index.apply(0, batch(stored([1, 2, 3], None, A, **window)))
    assert depth(index, A) == 0
    index.apply(0, batch(stored([1, 2, 3], None, A, **full), stored([1, 2], None, A[:8], **other)))
    assert depth(index, A) == 12
    index.apply(0, batch(Removed([2], group_idx=1), Removed([2], group_idx=3)))
    assert depth(index, A) == 12
    index.apply(0, batch(Removed([2], group_idx=2)))
    assert depth(index, A) == 4


def test_what_lies_on_slower_media_is_told_apart(index: TokenIndex) -> None:
    index.apply(0, batch(stored([1], None, A[:4], medium="GPU")))
    index.apply(0, batch(stored([1, 2], None, A[:8], medium="CPU")))
    index.apply(0, batch(stored([1, 2, 3], None, A, medium="disk")))
    assert (depth(index, A), in_tiers(index, A)) == (12, {"CPU": 4.0, "DISK": 4.0})
    index.apply(0, batch(Removed([1], medium="GPU")))
    assert (depth(index, A), in_tiers(index, A)) == (12, {"CPU": 8.0, "DISK": 4.0})
    assert in_tiers(index, A, 1) == {}


def test_a_connector_names_blocks_without_their_tokens(index: TokenIndex) -> None:
    """vLLM's OffloadingConnector: whole hashes, where the engine's own events have their end."""
    whole = b"\x07" * 24
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    bare: dict[str, Any] = {"medium": "CPU", "block_size": 0}
    index.apply(
        0,
        batch(
            stored([whole + bytes([*[0] * 7, 1])], None, [], **bare),
            stored([2, 99], None, [], **bare),
            Removed([1]),
            Removed([2]),
            Removed([3]),
        ),
    )
    assert (depth(index, A), in_tiers(index, A)) == (8, {"CPU": 8.0})
    assert index.tiers_told(0)[0]
    index.apply(0, batch(Removed([2], medium="CPU"), Removed([99], medium="CPU")))
    assert depth(index, A) == 4
    # It comes back, and is named again: known from before.
    index.apply(0, batch(stored([1, 2], None, A[:8]), stored([2], None, [], **bare)))
    index.apply(0, batch(Removed([1]), Removed([2])))
    assert in_tiers(index, A) == {"CPU": 8.0}


@pytest.mark.parametrize("learned", [False, True])
def test_a_shared_store_is_held_by_everybody(learned: bool) -> None:
    index = TokenIndex(() if learned else ("storage",))
    for slot in range(3):
        index.add_replica(slot)
        index.empty(slot, complete=True)
    locality = "REMOTE" if learned else None
    index.apply(1, batch(stored([1], None, A[:4])))
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    index.apply(0, batch(stored([1, 2], None, A[:8], medium="STORAGE", locality=locality)))
    assert [depth(index, A, slot) for slot in range(3)] == [12, 8, 8]
    assert in_tiers(index, A, 0) == {}
    assert in_tiers(index, A, 1) == {"STORAGE": 4.0}
    assert in_tiers(index, A, 2) == {"STORAGE": 8.0}
    index.apply(0, batch(Removed([1], medium="STORAGE"), Removed([3])))
    assert [depth(index, A, slot) for slot in range(3)] == [8, 8, 0]
    index.remove_replica(0)
    assert [depth(index, A, slot) for slot in (1, 2)] == [4, 0]


def test_a_cleared_cache_is_empty_and_known(index: TokenIndex) -> None:
    index.empty(0, complete=False)
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    assert not index.complete(0)
    index.apply(0, batch(Cleared(), stored([1], None, A[:4])))
    assert depth(index, A) == 4
    assert index.complete(0)


def test_an_engine_that_clears_its_cache_leaves_a_shared_store_as_it_is(
    index: TokenIndex,
) -> None:
    """LMCache keeps its blocks through /reset_prefix_cache, and tells of none of them again."""
    index.shared.add("STORAGE")
    for medium in ("GPU", "CPU", "STORAGE"):
        index.apply(0, batch(stored([1, 2], None, A[:8], medium=medium)))
    index.apply(0, batch(Cleared()))
    assert (depth(index, A), in_tiers(index, A)) == (8, {"STORAGE": 8.0})
    index.apply(0, batch(Removed([1, 2], medium="STORAGE")))
    assert (depth(index, A), index.blocks) == (0, 0)


def test_it_is_known_whether_a_tier_tells_salts(index: TokenIndex) -> None:
    """LMCache tells tokens without their salt; bare names of blocks of GPU memory cover it."""
    salted: dict[str, Any] = {"extra_keys": [["alice"]]}
    index.apply(0, batch(stored([1], None, A[:4], **salted)))
    assert index.tiers_told(0) == (False, False)
    index.apply(0, batch(stored([1], None, [], medium="CPU", block_size=0)))
    assert index.tiers_told(0) == (True, True)
    index.apply(0, batch(stored([7], None, A[:4], medium="STORAGE")))
    assert index.tiers_told(0) == (True, False)


def test_a_prompt_on_its_way_counts_until_told_or_given_up(index: TokenIndex) -> None:
    index.sized(0, BLOCK)
    first = index.expect(0, hashes(A))
    second = index.expect(0, hashes(A))
    assert depth(index, A) == 12
    index.give_up(first)
    assert depth(index, A) == 12
    index.apply(0, batch(stored([1, 2], None, A[:8])))
    index.give_up(second)
    assert depth(index, A) == 8
    index.apply(0, batch(Removed([2]), Removed([1])))
    assert index.blocks == 0


def test_what_no_event_told_is_learned_from_answers_where_history_is_gone(
    index: TokenIndex,
) -> None:
    index.empty(0, complete=False)
    index.sized(0, BLOCK)
    index.answered(0, hashes([*A, 1, 2, 3, 4]), 0, 12)
    assert depth(index, A) == 12
    index.answered(0, hashes([*A, 1, 2, 3, 4]), 12, 4)
    assert depth(index, A) == 4
    index.apply(0, batch(Removed([77])))  # a block left: the only one learned, as far as known
    assert depth(index, A) == 0


def test_a_complete_replica_learns_nothing_from_answers(index: TokenIndex) -> None:
    index.sized(0, BLOCK)
    index.answered(0, hashes(A), 0, 12)
    assert depth(index, A) == 0


def test_a_copy_told_twice_is_taken_back_when_an_answer_shows_that_it_is_gone(
    index: TokenIndex,
) -> None:
    event = stored([1, 2], None, A[:8])
    index.apply(0, batch(event, event))  # kv_cache_report_mode=full
    index.apply(0, batch(Removed([2])))
    assert depth(index, A) == 8  # wrong, and cannot be known
    index.apply(0, batch(stored([2], 1, A[4:8])))  # computed anew
    index.answered(0, hashes(A), 8, 4)
    index.apply(0, batch(Removed([2])))
    assert depth(index, A) == 4


def test_a_replica_that_left_leaves_nothing(index: TokenIndex) -> None:
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    index.apply(1, batch(stored([1], None, A[:4])))
    index.expect(0, hashes([7] * 8))
    index.remove_replica(0)
    assert index.match(hashes(A), BLOCK, -1) == [(4.0, 0b10)]
    assert index.blocks == 1
    with pytest.raises(ValueError, match="slot 1 is taken"):
        index.add_replica(1)


def test_blocks_may_be_several_of_what_the_metrics_tell(index: TokenIndex) -> None:
    """Under context parallelism; a single one may be the end of a prompt, and a part of a block."""
    index.sized(0, 2)
    index.apply(0, batch(stored([9], None, A[:2], block_size=2)))
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    index.apply(0, batch(stored([8], 1, A[4:6], block_size=2)))
    index.apply(0, batch(stored([7], None, A[:8], block_size=8)))
    assert index.block(0) == BLOCK
    assert index.sizes == {2: 0, BLOCK: 1}
    assert depth(index, A) == 12
    assert index.complete(0)


def test_a_restart_with_another_block_size_is_followed(index: TokenIndex) -> None:
    index.sized(0, BLOCK)
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    index.empty(0, complete=True)
    index.sized(0, 6)
    index.apply(0, batch(stored([1, 2], None, A, block_size=6)))
    assert index.match(chain(array("I", A).tobytes(), 6, seed("", "")), 6, 1) == [(12.0, 1)]
    assert depth(index, A) == 0


@pytest.mark.parametrize("block", [0, BLOCK])
def test_no_event_of_a_connector_sets_the_size_of_blocks(index: TokenIndex, block: int) -> None:
    """Placeholders of the OffloadingConnector; tiers of LMCache and Mooncake with 256 tokens."""
    if block:
        index.sized(0, block)
    tokens = list(range(256))
    index.apply(
        0,
        batch(
            stored([1], None, [], block_size=0, medium="CPU", group_idx=7),
            stored([2], None, [], block_size=0),
            stored([3], None, tokens, block_size=256, medium="cpu"),
            stored([4, 5], None, tokens * 2, block_size=256, medium="STORAGE"),
            stored([], None, [], block_size=0, medium="disk"),
            stored([6], None, [1, 2], block_size=256),
            Removed([1], medium="CPU", group_idx=7),
            Removed([9], medium="elsewhere"),
        ),
    )
    assert index.block(0) == block
    index.apply(0, batch(stored([1, 2, 3], None, A, group_idx=0)))
    assert (index.block(0), depth(index, A)) == (BLOCK, 12)


def test_a_tier_has_blocks_of_a_size_of_its_own(index: TokenIndex) -> None:
    """It gives whole ones only."""
    index.sized(0, BLOCK)
    index.apply(0, batch(stored([1, 2, 3], None, A)))
    index.apply(0, batch(stored([b"x"], None, A[:8], block_size=8, medium="cpu")))
    index.apply(0, batch(stored([b"y"], 2, [*A[8:], 7, 7, 7, 7], block_size=8, medium="cpu")))
    index.apply(0, batch(Removed([3]), Removed([2]), Removed([1])))
    assert depth(index, A) == 8
    assert in_tiers(index, [*A, 7, 7, 7, 7]) == {"CPU": 16.0}
    assert index.tiers_told(0)[0]
    index.apply(0, batch(Removed([b"y"], medium="CPU")))
    assert depth(index, A) == 8
    index.apply(0, batch(Removed([b"x"], medium="cpu")))
    assert depth(index, A) == 0
    assert not index.tiers_told(0)[0]


def ada(name: int, parent: int | None, tokens: list[int]) -> Stored:
    extra = [["ada"]] * (len(tokens) // BLOCK)
    names = list(range(name, name + len(extra)))
    return stored(names, parent, tokens, lora_name="ada", extra_keys=extra)


def test_a_tier_whose_blocks_have_a_size_that_makes_no_sense_is_left_out(
    index: TokenIndex,
) -> None:
    index.apply(0, batch(stored([1, 2], None, range(8))))
    for size in (-BLOCK, -1):
        index.apply(0, batch(stored([1], None, (), block_size=size, medium="CPU")))
    assert not index.tiers_told(0)[0]
    assert index.placed(0) == 8


def test_an_adapter_from_another_path_has_none_of_the_old_ones_blocks(index: TokenIndex) -> None:
    index.adapters(0, {"ada": "/one"})
    index.apply(0, batch(ada(1, None, A), stored([9], None, A[:4])))
    index.adapters(0, {"ada": "/one", "bob": "/b"})
    assert depth(index, A, adapter="ada") == 12
    index.adapters(0, {"ada": "/two"})
    assert depth(index, A, adapter="ada") == 0
    assert depth(index, A) == 4
    index.apply(0, batch(ada(11, None, A[:8])))
    assert depth(index, A, adapter="ada") == 8
    index.apply(0, batch(Removed([3]), Removed([2]), Removed([1])))
    assert depth(index, A, adapter="ada") == 8


def test_an_adapter_loaded_again_from_where_it_was_has_its_blocks(index: TokenIndex) -> None:
    index.adapters(0, {"ada": "/one"})
    index.apply(0, batch(ada(1, None, A)))
    index.adapters(0, {})
    index.adapters(0, {"ada": "/one"})
    assert depth(index, A, adapter="ada") == 12


def test_events_show_another_adapter_before_the_list_of_models_does(index: TokenIndex) -> None:
    """Its first block has another name. What comes after is the new one's, and stays."""
    index.adapters(0, {"ada": "/one"})
    index.apply(0, batch(ada(1, None, A), ada(5, None, [7] * 8)))
    index.apply(0, batch(ada(11, None, A[:4])))
    assert depth(index, A, adapter="ada") == 4
    assert depth(index, [7] * 8, adapter="ada") == 0
    index.adapters(0, {"ada": "/two"})
    assert depth(index, A, adapter="ada") == 4
    index.adapters(0, {"ada": "/three"})
    assert depth(index, A, adapter="ada") == 0


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
    pending = []
    prompts = [[bit >> 2 & 1] * 4 + [bit >> 1 & 1] * 4 + [bit & 1] * 4 for bit in range(8)]
    for kind, *rest in steps:
        if kind == "store":
            fresh, parent, bits = rest
            if any(naive.prefix(name) is not None for name in fresh) or parent in fresh:
                continue
            event = stored(fresh, parent, [bit for bit in bits[: len(fresh)] for _ in range(4)])
            naive.store(event)
            index.apply(0, batch(event))
        elif kind == "remove":
            event_gone = Removed([rest[0]])
            naive.remove(event_gone)
            index.apply(0, batch(event_gone))
        elif kind == "expect":
            pending.append(index.expect(0, hashes(prompts[rest[0]])))
        elif len(pending) > rest[0]:
            index.give_up(pending.pop(rest[0]))
    for one in pending:
        index.give_up(one)
    for prompt in prompts:
        assert depth(index, prompt) == naive.depth(prompt, BLOCK)
    for name, _ in list(naive.copies):
        index.apply(0, batch(Removed([name])))
    assert index.blocks == 0


SIZES = [BLOCK, 2 * BLOCK, 3, 0, 256]
anything = st.one_of(
    st.builds(
        Stored,
        block_hashes=st.lists(st.integers(0, 9) | st.binary(max_size=2), max_size=3),
        parent_block_hash=st.none() | st.integers(0, 9),
        token_ids=st.integers(0, 6).flatmap(lambda n: st.just([1] * (n * BLOCK))),
        block_size=st.sampled_from(SIZES),
        lora_id=st.none() | st.integers(0, 3),
        medium=st.sampled_from(
            [None, "GPU", "gpu", "cpu", "CPU", "STORAGE", "disk", "", "LMCACHE"]
        ),
        lora_name=st.sampled_from([None, "ada", ""]),
        extra_keys=st.none()
        | st.lists(st.none() | st.lists(st.sampled_from(["ada", "s", ["i", 1], None]))),
        group_idx=st.sampled_from([None, 0, 1]),
        kv_cache_spec_kind=st.sampled_from([None, "full_attention", "mamba"]),
    ),
    st.builds(
        Removed,
        block_hashes=st.lists(st.integers(0, 9) | st.binary(max_size=2), max_size=3),
        medium=st.sampled_from([None, "GPU", "cpu", "STORAGE", "never seen"]),
        group_idx=st.sampled_from([None, 0, 1]),
    ),
    st.builds(Cleared),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), anything), max_size=25), st.sampled_from([0, BLOCK]))
def test_no_sequence_of_events_does_harm(events: list[tuple[int, Any]], told: int) -> None:
    """Whatever connectors and ranks send: nothing raises here or in a lookup, a size is one that an
    event of GPU memory had, and when all is removed nothing is left."""
    index = TokenIndex()
    for slot in range(2):
        index.add_replica(slot)
        if told:
            index.sized(slot, told)
    of_gpu: list[set[int]] = [{told} - {0}, {told} - {0}]
    for slot, event in events:
        index.apply(slot, batch(event))
        index.adapters(slot, {"ada": f"/{len(events) % 3}"})
        if isinstance(event, Stored) and (event.medium or "GPU").upper() == "GPU":
            of_gpu[slot].add(event.block_size)
        for block, mask in index.sizes.items():
            found = index.match(chain(array("I", [1] * 24).tobytes(), block, 1), block, mask)
            assert all(0 < held <= 24 for held, _ in found)
        pending = index.expect(slot, hashes([1] * 24))
        index.answered(slot, hashes([1] * 24), 8, 4)
        index.give_up(pending)
    for slot in range(2):
        block = index.block(slot)
        assert block in of_gpu[slot] | {0}
        assert not told or (block and block % told == 0)
        assert index.placed(slot) >= 0
        index.remove_replica(slot)
    assert index.blocks == 0


PART = 2 * BLOCK
"""Tokens of a tier's block."""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gpu", "tier", "gpu gone", "tier gone"]),
            st.integers(0, 1),
            st.integers(0, 15),
        ),
        max_size=40,
    )
)
def test_ranks_and_tiers_equal_a_naive_model(steps: list[tuple[str, int, int]]) -> None:
    """Each rank has a GPU with blocks of 4 tokens and a tier with blocks of 8. A prompt is 16
    tokens, of which each four are all 0 or all 1; a block of it can be had from either."""
    index = TokenIndex()
    there: dict[tuple[int, str, int], set[tuple[int, ...]]] = {}
    """(rank, medium, tokens of a block) -> the prefixes whose last block it holds."""
    for slot in range(2):
        index.add_replica(slot)
        index.sized(slot, BLOCK)
        there[slot, "GPU", BLOCK] = set()
        there[slot, "cpu", PART] = set()

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(number >> bit & 1 for bit in (3, 2, 1, 0) for _ in range(BLOCK))

    def name(prefix: tuple[int, ...], medium: str) -> bytes:
        return f"{medium} {prefix}".encode()

    for what, slot, number in steps:
        medium, size = ("GPU", BLOCK) if what.startswith("gpu") else ("cpu", PART)
        cache = there[slot, medium, size]
        prompt = tokens(number)
        prefixes = [prompt[:at] for at in range(size, 17, size)]
        if what.endswith("gone"):
            # The tail first, as engines evict; what is below another prompt's stays.
            gone = next(
                (p for p in reversed(prefixes) if p in cache and not _below(p, cache)), None
            )
            if gone is not None:
                cache.discard(gone)
                index.apply(slot, batch(Removed([name(gone, medium)], medium=medium)))
            continue
        fresh = [prefix for prefix in prefixes if prefix not in cache]
        if fresh:
            before = fresh[0][:-size]
            index.apply(
                slot,
                batch(
                    stored(
                        [name(prefix, medium) for prefix in fresh],
                        name(before, medium) if before else None,
                        prompt[len(before) :],
                        block_size=size,
                        medium=medium,
                    )
                ),
            )
            cache.update(fresh)
    for slot in range(2):
        for number in range(16):
            prompt = tokens(number)
            held = behind = 0
            for at in range(0, 16, BLOCK):
                if prompt[: at + BLOCK] in there[slot, "GPU", BLOCK]:
                    held += BLOCK
                elif prompt[: at - at % PART + PART] in there[slot, "cpu", PART]:
                    held += BLOCK
                    behind += BLOCK
                else:
                    break
            assert depth(index, list(prompt), slot) == held
            assert sum(in_tiers(index, list(prompt), slot).values()) == behind


def _below(prefix: tuple[int, ...], cache: set[tuple[int, ...]]) -> bool:
    return any(len(p) > len(prefix) and p[: len(prefix)] == prefix for p in cache)
