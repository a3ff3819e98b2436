"""Replicas come, restart, go and come back; settings that make no sense are refused."""

from __future__ import annotations

from array import array

import pytest
from index_checks import chained

from router.index import ByteIndex
from router.types import NO_CHAIN, CacheRoom, PrefixIndex


def two() -> ByteIndex:
    index = ByteIndex(range(1000))
    for slot in range(2):
        index.add_replica(slot, 100)
        index.record(slot, chained("shared"), 1.0)
        index.record(slot, chained(f"shared{slot}"), 2.0)
    return index


def test_it_is_what_the_other_rooms_expect() -> None:
    index: PrefixIndex = ByteIndex(range(10))
    index.add_replica(3, 9)
    room: CacheRoom = index.record(3, NO_CHAIN, 0.0)
    assert room.capacity == 9


def test_forget_is_complete_and_leaves_the_others_alone() -> None:
    index = two()
    index.forget(0)
    assert index.match(chained("shared0")) == [(6, 2)]
    assert index.match(chained("shared1")) == [(7, 2)]
    assert index.blocks == 7
    index.forget(1)
    assert index.blocks == 0
    assert not index._nodes
    assert index.nbytes() < 2000


def test_a_slot_may_be_used_again_after_removal() -> None:
    index = two()
    index.remove_replica(0)
    with pytest.raises(KeyError, match="slot 0 is not in the index"):
        index.room(0)
    index.add_replica(0, 5)
    assert index.match(chained("shared0")) == [(6, 2)]
    assert (index.room(0).used, index.room(0).capacity) == (0, 5)


def test_forget_cuts_what_only_the_forgotten_held_in_full() -> None:
    index = ByteIndex(range(1000))
    index.add_replica(0, 100)
    index.add_replica(1, 100)
    index.record(0, chained("abcdef"), 1.0)
    index.record(1, chained("abc"), 1.0)
    index.forget(0)
    assert index.blocks == 3
    assert index.match(chained("abcdef")) == [(3, 2)]
    index.record(1, chained("abcdef"), 2.0)
    assert index.match(chained("abcdef")) == [(6, 2)]


def test_unknown_and_taken_slots_are_named() -> None:
    index = two()
    with pytest.raises(ValueError, match="slot 1 is taken"):
        index.add_replica(1, 10)
    with pytest.raises(ValueError, match="slot must be 0 or more, got -1"):
        index.add_replica(-1, 10)
    for call in (
        lambda: index.record(7, chained("a"), 1.0),
        lambda: index.resize(7, 10),
        lambda: index.forget(7),
        lambda: index.remove_replica(7),
        lambda: index.held(7),
        lambda: index.share(7),
    ):
        with pytest.raises(KeyError, match="slot 7 is not in the index"):
            call()


def test_a_negative_capacity_is_refused() -> None:
    index = two()
    with pytest.raises(ValueError, match="capacity must be 0 or more, got -1"):
        index.resize(0, -1)
    with pytest.raises(ValueError, match="capacity must be 0 or more, got -1"):
        index.add_replica(5, -1)
    assert index.room(0).capacity == 100


def test_a_capacity_of_nothing_holds_nothing() -> None:
    index = ByteIndex(range(1000))
    index.add_replica(0, 0)
    index.record(0, chained("abc"), 1.0)
    assert (index.blocks, index.share(0)) == (0, 0.0)


@pytest.mark.parametrize(
    ("spans", "error"),
    [
        ((0,), "at least two entries"),
        ((), "at least two entries"),
        ((0, 5, 5, 9), r"spans\[2\] is 5 after 5"),
        ((0, 5, 4), r"spans\[2\] is 4 after 5"),
        (range(10, 0, -1), "negative step"),
    ],
)
def test_spans_must_grow(spans: tuple[int, ...] | range, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ByteIndex(spans)


def test_a_long_line_of_nodes_is_taken_apart() -> None:
    """Freeing a node must not free its parent, and so on: C stacks are only so deep."""
    depth = 300
    index = ByteIndex(range(10_000))
    index.add_replica(0, 100_000)
    chain = array("Q", range(1, depth + 1))
    for end in range(depth, 0, -1):  # ever shorter touches make a node of each block
        index.record(0, chain[:end], float(depth - end))
    nodes = list(index._nodes.values())
    assert len(nodes) == depth
    index.forget(0)
    assert not index._nodes
    assert all(node.parent is None for node in nodes)


def test_nbytes_follows_what_is_held() -> None:
    index = ByteIndex(range(100_000))
    index.add_replica(0, 100_000)
    empty = index.nbytes()
    index.record(0, chained(range(10_000)), 1.0)
    assert 80_000 <= index.nbytes() - empty < 90_000
    index.resize(0, 5_000)
    assert 40_000 <= index.nbytes() - empty < 50_000
