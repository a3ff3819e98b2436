"""What a replica's LRU evicts, keeps and reports."""

from __future__ import annotations

from index_checks import chained, check_tree

from router.index import ByteIndex


def small(capacity: int, replicas: int = 1) -> ByteIndex:
    index = ByteIndex(range(100_000))
    for slot in range(replicas):
        index.add_replica(slot, capacity)
    return index


def depth(index: ByteIndex, text: str, slot: int = 0) -> int:
    return next((weight for weight, mask in index.match(chained(text)) if mask >> slot & 1), 0)


def test_the_least_recently_used_chain_goes_tail_first() -> None:
    index = small(8)
    index.record(0, chained("abcd"), 1.0)
    index.record(0, chained("wxyz"), 2.0)
    index.record(0, chained("12"), 3.0)
    assert [depth(index, text) for text in ("abcd", "wxyz", "12")] == [2, 4, 2]
    index.record(0, chained("ab"), 4.0)
    index.record(0, chained("34"), 5.0)
    assert [depth(index, text) for text in ("abcd", "wxyz", "12", "34")] == [2, 2, 2, 2]


def test_a_shared_head_outlives_the_tails() -> None:
    index = small(6)
    index.record(0, chained("ssab"), 1.0)
    index.record(0, chained("sscd"), 2.0)
    index.record(0, chained("ssef"), 3.0)
    assert [depth(index, text) for text in ("ssab", "sscd", "ssef")] == [2, 4, 4]
    index.record(0, chained("wxyz"), 4.0)
    assert [depth(index, text) for text in ("sscd", "ssef", "wxyz")] == [2, 2, 4]


def test_what_follows_a_shorter_touch_stays_old() -> None:
    index = small(6)
    index.record(0, chained("abcd"), 1.0)
    index.record(0, chained("xy"), 2.0)
    index.record(0, chained("ab"), 3.0)
    index.record(0, chained("12"), 4.0)
    assert [depth(index, text) for text in ("abcd", "xy", "12")] == [2, 2, 2]
    assert index.room(0).oldest == 2.0


def test_a_chain_heavier_than_the_capacity_keeps_its_head() -> None:
    index = small(3)
    index.record(0, chained("xy"), 1.0)
    index.record(0, chained("abcdef"), 2.0)
    assert (depth(index, "abcdef"), depth(index, "xy")) == (3, 0)
    assert index.room(0).used == 3
    check_tree(index)


def test_whole_blocks_are_evicted() -> None:
    index = ByteIndex((0, 10, 30, 60))
    index.add_replica(0, 59)
    index.record(0, chained("abc"), 1.0)
    assert index.room(0).used == 30
    index.resize(0, 9)
    assert (index.room(0).used, index.blocks) == (0, 0)


def test_each_replica_evicts_for_itself() -> None:
    index = small(4, replicas=2)
    index.record(0, chained("abcd"), 1.0)
    index.record(1, chained("abcd"), 1.0)
    index.record(0, chained("xy"), 2.0)
    assert index.match(chained("abcd")) == [(4, 2), (2, 1)]
    assert index.blocks == 6
    index.record(1, chained("xyz"), 2.0)
    assert index.match(chained("abcd")) == [(2, 1), (1, 2)]
    assert index.blocks == 5
    check_tree(index)


def test_room_is_live() -> None:
    index = small(5)
    room = index.room(0)
    assert (room.used, room.capacity) == (0, 5)
    index.record(0, chained("abc"), 1.0)
    assert (room.used, room.oldest, index.held(0), index.share(0)) == (3, 1.0, 3, 0.6)
    index.record(0, chained("xy"), 2.0)
    index.record(0, chained("abc"), 3.0)
    assert room.oldest == 2.0
    index.resize(0, 2)
    assert (room.used, room.capacity, room.oldest) == (2, 2, 3.0)
    index.forget(0)
    assert (room.used, room.capacity, index.held(0)) == (0, 2, 0)
    index.record(0, chained("abc"), 4.0)
    assert (room.used, room.oldest) == (2, 4.0)
    assert index.room(0) is room


def test_a_growing_session_stays_one_node() -> None:
    index = small(10_000)
    text = list(range(50))
    for turn in range(20):
        text += [turn] * 5
        index.record(0, chained(text), float(turn))
    assert len(index._nodes) == 1
    assert len(index.room(0).order) <= 2


def test_a_split_heals_when_its_branch_is_gone() -> None:
    index = small(12, replicas=3)
    index.record(0, chained("abcdefgh"), 0.0)
    index.record(1, chained("ab"), 1.0)  # holds a part of what is merged
    index.record(2, chained("abcdx"), 1.0)
    assert len(index._nodes) == 3
    index.forget(2)
    index.record(0, chained("abcdefgh"), 2.0)
    assert len(index._nodes) == 1
    assert index.match(chained("abcdefgh")) == [(8, 1), (2, 2)]
    check_tree(index)
    index.resize(1, 1)
    assert index.match(chained("abcdefgh")) == [(8, 1), (1, 2)]


def test_dead_touches_do_not_pile_up() -> None:
    index = small(1000)
    index.record(0, chained("old"), 0.0)  # keeps the front of the line alive
    for turn in range(1000):
        index.record(0, chained("abcd"), float(turn))
    assert len(index.room(0).order) < 100
    assert index.room(0).oldest == 0.0
