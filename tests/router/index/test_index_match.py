"""Lookups: how deep each replica holds a chain."""

from __future__ import annotations

from array import array

from index_checks import chained, check_tree

from router.index import ByteIndex
from router.types import slots

SPANS = (100, 110, 130, 160, 200, 250)
"""Weights 10, 20, 30, 40, 50; the first n blocks weigh 10, 30, 60, 100, 150."""


def index_of(replicas: int, spans: tuple[int, ...] | range = SPANS) -> ByteIndex:
    index = ByteIndex(spans)
    for slot in range(replicas):
        index.add_replica(slot, 1_000_000)
    return index


def test_an_empty_index_and_an_empty_chain_match_nothing() -> None:
    index = index_of(1)
    assert index.match(chained("abc")) == []
    index.record(0, array("Q"), 1.0)
    index.record(0, chained("abc"), 1.0)
    assert index.match(array("Q")) == []
    assert index.match(chained("xbc")) == []


def test_weight_is_counted_from_the_first_span() -> None:
    index = index_of(1)
    index.record(0, chained("abc"), 1.0)
    assert index.match(chained("abc")) == [(60, 1)]
    assert index.match(chained("abcd")) == [(60, 1)]
    assert index.match(chained("ab")) == [(30, 1)]
    assert index.match(chained("abx")) == [(30, 1)]


def test_blocks_of_one_weight_may_be_a_range() -> None:
    index = index_of(1, range(32, 1_000_000, 16))
    index.record(0, chained("abc"), 1.0)
    assert index.match(chained("abcd")) == [(48, 1)]
    assert index.room(0).used == 48


def test_holders_come_deepest_first_in_disjoint_masks() -> None:
    index = index_of(6)
    for slot, text in enumerate(["abcd", "ab", "abx", "abcd", "xyz", "abcde"]):
        index.record(slot, chained(text), float(slot))
    assert index.match(chained("abcde")) == [
        (150, 1 << 5),
        (100, 1 << 0 | 1 << 3),
        (30, 1 << 1 | 1 << 2),
    ]
    assert index.match(chained("abxy")) == [(60, 1 << 2), (30, 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5)]
    check_tree(index)


def test_holders_of_less_than_the_first_run_are_told_too() -> None:
    index = index_of(3)
    index.record(0, chained("abcd"), 1.0)
    index.record(1, chained("a"), 1.0)
    index.record(2, chained("abc"), 1.0)
    assert index.match(chained("abcd")) == [(100, 1), (60, 4), (10, 2)]
    assert index.match(chained("ab")) == [(30, 5), (10, 2)]


def test_holders_of_parts_of_one_run_are_in_order() -> None:
    index = index_of(5)
    for slot, text in enumerate(["abcde", "abc", "a", "abcd", "ab"]):
        index.record(slot, chained(text), float(slot))
    assert len(index._nodes) == 1
    assert index.match(chained("abcde")) == [(150, 1), (100, 8), (60, 2), (30, 16), (10, 4)]
    assert index.match(chained("abcx")) == [(60, 1 | 8 | 2), (30, 16), (10, 4)]


def test_blocks_beyond_the_spans_are_neither_recorded_nor_matched() -> None:
    index = index_of(1)
    index.record(0, chained("abcdefgh"), 1.0)
    assert index.held(0) == 5
    assert index.match(chained("abcdefgh")) == [(150, 1)]
    assert index.match(chained("abcdexyz")) == [(150, 1)]


def test_a_recorded_chain_is_copied() -> None:
    index = index_of(1)
    chain = chained("ab")
    index.record(0, chain, 1.0)
    index.record(0, chained("abc"), 1.0)
    assert chain == chained("ab")
    chain[0] = 7
    assert index.match(chained("abc")) == [(60, 1)]


def test_a_hash_that_collides_does_not_lead_into_another_chain() -> None:
    """Two chains with one hash in common but not what is before it; no real hash does this."""
    index = index_of(2, range(1000))
    index.record(0, array("Q", [1, 2]), 1.0)
    index.record(0, array("Q", [1, 3]), 1.0)  # 3 begins a node, below 1
    index.record(1, array("Q", [9, 8]), 1.0)
    index.record(1, array("Q", [9, 3, 4]), 1.0)
    assert index.match(array("Q", [9, 3, 4])) == [(1, 2)]
    assert index.match(array("Q", [3])) == []
    assert index.match(array("Q", [1, 3])) == [(2, 1)]
    index.record(0, array("Q", [9, 8]), 2.0)
    index.remove_replica(0)
    index.remove_replica(1)
    assert index.blocks == 0


def test_colliding_hashes_never_break_the_books() -> None:
    """A hash in two places of one chain: what is found is unspecified, what is held is bounded."""
    index = index_of(2, range(1000))
    index.resize(0, 5)
    for k, chain in enumerate([[1, 1, 1], [1], [1, 1, 2, 1], [1, 1], [2, 1, 1, 1, 2], [1, 2, 1]]):
        index.record(k % 2, array("Q", chain), float(k))
        index.match(array("Q", chain))
        assert index.room(0).used <= 5
    index.forget(0)
    index.forget(1)
    assert index.blocks == 0
    assert not index._nodes


def test_a_thousand_replicas_of_one_prompt_are_one_mask() -> None:
    index = index_of(1000, range(100_000))
    prompt = chained(range(200))
    for slot in range(1000):
        index.record(slot, prompt, 1.0)
    assert index.match(prompt) == [(200, (1 << 1000) - 1)]
    assert index.blocks == 200
    index.record(17, chained([*range(200), 1]), 2.0)
    rest = (1 << 1000) - 1 ^ 1 << 17
    assert index.match(chained([*range(200), 1])) == [(201, 1 << 17), (200, rest)]
    index.record(18, chained([*range(100), -1]), 2.0)  # splits what all of them hold
    [(weight, mask)] = index.match(prompt)
    assert (weight, len(slots(mask))) == (200, 1000)
    check_tree(index)
