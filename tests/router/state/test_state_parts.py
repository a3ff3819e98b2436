"""Parts by themselves: replies, maps, what the outbox does when nobody listens, bounds."""

from __future__ import annotations

import asyncio
import time

import pytest
from state_world import Node, RedisServer, answers, chain, until

from router.index import ByteIndex
from router.prompt.spans import SPANS
from router.state.cache_snapshots import adopt, decode, encode
from router.state.chain_dictionary import Book
from router.state.codec import BadBatchError, name_key
from router.state.resp import Connection, LostError, Reply, ReplyError, packed


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def abort(self) -> None:
        self.aborted = True


REPLIES = (
    (b"+OK\r\n", b"OK"),
    (b":-12\r\n", -12),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"$0\r\n\r\n", b""),
    (b"$7\r\na\r\nb\r\nc\r\n", b"a\r\nb\r\nc"),
    (b"*2\r\n*1\r\n$1\r\nx\r\n:3\r\n", [[b"x"], 3]),
)


async def test_replies_in_pieces_of_any_size() -> None:
    whole = b"".join(wire for wire, _ in REPLIES)
    for step in range(1, len(whole)):
        connection, wire = Connection(), Wire()
        connection.connection_made(wire)
        call = asyncio.create_task(connection.calls([("X",)] * len(REPLIES)))
        await asyncio.sleep(0)
        for at in range(0, len(whole), step):
            connection.data_received(whole[at : at + step])
        assert await call == [value for _, value in REPLIES]


async def test_an_error_is_raised_for_one_command_and_listed_for_several() -> None:
    connection = Connection()
    connection.connection_made(Wire())
    call = asyncio.create_task(connection.call("GET", "x"))
    await asyncio.sleep(0)
    connection.data_received(b"-WRONGTYPE no\r\n")
    with pytest.raises(ReplyError, match="no") as caught:
        await call
    assert caught.value.code == "WRONGTYPE"
    both = asyncio.create_task(connection.calls([("A",), ("B",)]))
    await asyncio.sleep(0)
    connection.data_received(b"-OOM\r\n:1\r\n")
    replies: list[Reply] = await both
    assert isinstance(replies[0], ReplyError)
    assert replies[1] == 1


async def test_a_late_answer_ends_the_connection() -> None:
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    with pytest.raises(LostError, match=r"no answer within 0\.01 s"):
        await connection.call("PING", within=0.01)
    assert wire.aborted
    connection.data_received(b"+PONG\r\n")  # not taken for the next one's
    with pytest.raises(LostError):
        await connection.call("PING")


async def test_what_is_not_resp_ends_the_connection() -> None:
    connection, wire = Connection(), Wire()
    connection.connection_made(wire)
    call = asyncio.create_task(connection.call("PING"))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(LostError, match="not RESP"):
        await call
    assert wire.aborted


def test_commands_are_arrays_of_bulk_strings() -> None:
    assert packed(("SET", b"\r\n", 12)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"


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
        adopt(fresh, slot, found, Book(), 110.0)
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
    adopt(index, 0, decode(encoded(source, 0, 10.0), 1000.0), Book(), 10.0)
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
    monkeypatch.setattr("router.state.snapshot_writer.EVERY", 0.1)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND", 0.05)
    monkeypatch.setattr("router.state.chain_dictionary.LIMIT", 200_000)
    assert callable(node)
    a: Node = await node(capacity=50_000)
    b: Node = await node(capacity=50_000)
    for one in (a, b):
        one.shared.book._limit = 200_000
    sizes = []
    for _ in range(4):
        last = []
        until_then = time.monotonic() + 1.0
        while time.monotonic() < until_then:
            last = [chain(16) for _ in range(10)]
            for number, one in enumerate(last):
                (a, b)[number % 2].serve(one)
            await asyncio.sleep(0.005)
        await answers(redis, "XLEN", a.carrier.keys.facts, like=lambda count: count < 400)
        sizes.append(
            (
                int(str(await redis.call("DBSIZE"))),
                len(a.shared.book),
                a.index.blocks,
                len(a.shared.peers.others),
                len(b.shared.peers.others),
            )
        )
        await until(lambda: all(a.holds(one) and b.holds(one) for one in last))  # noqa: B023
    assert sizes[1][0] == sizes[3][0]
    assert sizes[3][1] < 2.0 * sizes[1][1]
    assert sizes[3][2] <= 1.05 * sizes[1][2]
    assert sizes[3][3:] == (1, 1)
