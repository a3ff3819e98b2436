"""Parts by themselves: maps, what the outbox does when nobody listens, bounds."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis_server import RedisServer
from state_world import Node, answers, chain, until

from router.index import ByteIndex
from router.prompt.spans import SPANS
from router.state.cache_snapshots import adopt, decode, encode
from router.state.chain_dictionary import ChainDictionary
from router.state.codec import BadBatchError, name_key


def encoded(index: ByteIndex, slot: int, now: float) -> bytes:
    pieces = list(encode(name_key("a"), index.touches(slot), (5, 6), now, 1000.0))
    assert pieces[-1] is not None
    return pieces[-1]


def test_a_map_restores_the_room_to_the_block_and_its_order() -> None:
    index = ByteIndex(SPANS)
    index.add_replica(0, 400_000)
    index.add_replica(1, 400_000)
    head = chain(30)
    chains = []
    for number in range(60):
        one = chain(10, head) if number % 3 else chain(25)
        chains.append(one)
        index.record(0, one, float(number))
        index.record(1, one[: 20 if number % 3 else 7], float(number))
    for slot in (0, 1):
        data = encoded(index, slot, 100.0)
        found = decode(data, 1010.0)
        assert found.position == (5, 6)
        assert found.age == 10.0
        fresh = ByteIndex(SPANS)
        fresh.add_replica(slot, 400_000)
        adopt(fresh, slot, found, ChainDictionary(), 110.0)
        room, again = index.room(slot), fresh.room(slot)
        assert (room.used, room.blocks) == (again.used, again.blocks)
        assert again.oldest == pytest.approx(room.oldest, abs=0.01)
        # the same blocks go first from both
        for capacity in (300_000, 200_000, 50_000):
            index.resize(slot, capacity)
            fresh.resize(slot, capacity)
            its = [next((w for w, m in fresh.match(c) if m >> slot & 1), None) for c in chains]
            mine = [next((w for w, m in index.match(c) if m >> slot & 1), None) for c in chains]
            assert mine == its


def test_a_map_is_merged_with_what_is_there_by_last_use() -> None:
    source = ByteIndex(SPANS)
    source.add_replica(0, 1 << 30)
    old, middle, new = chain(10), chain(10), chain(10)
    source.record(0, old, 1.0)
    source.record(0, new, 9.0)
    index = ByteIndex(SPANS)
    index.add_replica(0, 1 << 30)
    index.record(0, middle, 5.0)
    adopt(index, 0, decode(encoded(source, 0, 10.0), 1000.0), ChainDictionary(), 10.0)
    used = index.room(0).used
    index.resize(0, used - 1)
    index.resize(0, used * 2 // 3)
    assert [bool(index.match(one)) for one in (old, middle, new)] == [False, True, True]
    index.resize(0, used // 3)
    assert [bool(index.match(one)) for one in (old, middle, new)] == [False, False, True]


def test_touches_leave_out_what_was_forgotten_and_what_is_old() -> None:
    index = ByteIndex(SPANS)
    index.add_replica(0, 1 << 30)
    one, two = chain(10), chain(10)
    index.record(0, one, 1.0)
    index.record(0, two, 2.0)
    assert [(when, list(c)) for when, c in index.touches(0, 1.5)] == [(2.0, list(two))]
    walk = index.touches(0)
    next(walk)
    index.forget(0)
    assert list(walk) == []


def test_a_damaged_map_is_refused() -> None:
    index = ByteIndex(SPANS)
    index.add_replica(0, 1 << 30)
    index.record(0, chain(10), 1.0)
    data = encoded(index, 0, 2.0)
    for damaged in (b"", data[:-1], data[:10], b"x" + data[1:], data[:60] + b"x" + data[61:]):
        with pytest.raises(BadBatchError):
            decode(damaged, 0.0)


async def test_ever_new_prefixes_leave_everything_at_a_flat_size(
    redis: RedisServer, node: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the keeper does every 20 s it does every 0.1 s here: 4 s are a quarter of an hour."""
    monkeypatch.setattr("router.state.snapshot_writer.WRITE_INTERVAL_S", 0.1)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND_INTERVAL_S", 0.05)
    monkeypatch.setattr("router.state.chain_dictionary.MAX_PART_BYTES", 200_000)
    assert callable(node)
    a: Node = await node(capacity=50_000)
    b: Node = await node(capacity=50_000)
    for one in (a, b):
        one.shared.dictionary._limit = 200_000
    sizes = []
    for _ in range(4):
        last = []
        until_then = time.monotonic() + 1.0
        while time.monotonic() < until_then:
            last = [chain(16) for _ in range(10)]
            for number, one in enumerate(last):
                (a, b)[number % 2].serve(one)
            await asyncio.sleep(0.005)
        await answers(redis, "XLEN", a.transport.keys.facts, like=lambda count: count < 400)
        sizes.append(
            (
                int(str(await redis.call("DBSIZE"))),
                len(a.shared.dictionary),
                a.index.blocks,
                len(a.shared.peers.others),
                len(b.shared.peers.others),
            )
        )
        await until(lambda: all(a.holds(one) and b.holds(one) for one in last), 30.0)  # noqa: B023
    assert sizes[1][0] == sizes[3][0]
    assert sizes[3][1] < 2.0 * sizes[1][1]
    assert sizes[3][2] <= 1.05 * sizes[1][2]
    assert sizes[3][3:] == (1, 1)
