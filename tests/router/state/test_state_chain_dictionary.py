from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from state_world import chain

from router.state.chain_dictionary import ChainDictionary
from router.state.codec import (
    FINISHED,
    HELD,
    ROUTED,
    BadBatchError,
    OpenRequest,
    Writer,
    name_key,
    read,
)
from router.types import Chain


def send(sender: ChainDictionary, receiver: ChainDictionary, sent: Chain) -> int:
    """Hashes on the way."""
    depth = sender.depth(sent)
    key = sent[depth - 1] if depth else 0
    tail = sent[depth:]
    assert sender.learn(depth, key, tail) is not None
    got = receiver.learn(depth, key, tail)
    assert got is not None
    assert got[: len(sent)] == sent
    return len(tail)


def test_what_is_known_is_not_sent_again() -> None:
    a, b = ChainDictionary(), ChainDictionary()
    head = chain(37)
    assert send(a, b, head) == 37
    assert send(a, b, head) == 0
    longer = chain(5, head)
    assert send(a, b, longer) == 5
    assert send(b, a, chain(3, longer)) == 3  # either may go on
    assert send(a, b, chain(4, head)) == 4  # from where the shorter one ended, too
    # in the middle, from the last stride before
    assert send(a, b, chain(4, head[:30])) == 4 + 30 % 8


def test_a_chain_given_is_not_changed_later() -> None:
    dictionary = ChainDictionary()
    one = chain(10)
    dictionary.learn(0, 0, one)
    dictionary.learn(10, one[-1], chain(2))
    assert len(one) == 10


def test_bounded_and_what_a_sender_knows_the_receiver_knows() -> None:
    a, b = ChainDictionary(100_000), ChainDictionary(150_000)
    sessions = [chain(20) for _ in range(50)]
    for step in range(4000):
        at = step * 7 % 50
        sessions[at] = chain(1, sessions[at]) if len(sessions[at]) < 60 else chain(20)
        send(*((a, b) if step % 2 else (b, a)), sessions[at])
        assert len(a) < 4 * 100_000 / 100
    for _ in range(4000):
        send(a, b, chain(16))
    assert len(a) < 4 * 100_000 / 100
    assert b.depth(sessions[0]) == 0


def test_remembered_is_for_reading_only() -> None:
    a = ChainDictionary()
    one = chain(10)
    a.remember(one[:])
    assert a.depth(one) == 0
    assert a.find(one[9], 10) == one
    more = a.learn(10, one[9], array("Q", [5]))
    assert more is not None
    assert list(more) == [*one, 5]


def test_forgotten() -> None:
    a = ChainDictionary()
    one = chain(9)
    a.learn(0, 0, one)
    a.forget(one[-1])
    assert a.depth(one) == 8
    assert a.learn(9, one[-1], array("Q")) is None


def full() -> bytes:
    writer = Writer()
    writer.routed(name_key("a"), 7, 5000, 100.0, 1200.0, 0, 0, chain(3))
    writer.routed(name_key("b"), 8, 5000, 100.0, 1200.0, 3, 99, chain(2))
    writer.request_fact(FINISHED, 7)
    writer.held(name_key("a"), 1.5, 0, 0, chain(2))
    writer.forgot(name_key("b"))
    writer.resized(name_key("b"), 10**12)
    writer.in_flight([OpenRequest(8, name_key("a"), 1.0, 2.0, True)])
    writer.missing(2**64 - 1)
    return writer.batch(2**63, 12)


def test_a_batch_is_read_as_written() -> None:
    batch = read(full())
    assert (batch.router, batch.number) == (2**63, 12)
    routed = batch.facts[1]
    assert (routed.kind, routed.replica, routed.depth, routed.key) == (ROUTED, name_key("b"), 3, 99)
    assert (routed.serial, routed.size, routed.uncached, routed.tokens) == (8, 5000, 100.0, 1200.0)
    assert batch.facts[3].kind == HELD
    assert batch.facts[3].age == 1.5
    assert batch.facts[5].size == 10**12
    assert batch.facts[6].open == [OpenRequest(8, name_key("a"), 1.0, 2.0, True)]
    assert batch.facts[7].key == 2**64 - 1


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 20))
def test_nothing_but_a_batch_is_read(junk: bytes, at: int, cut: int) -> None:
    good = full()
    damaged = good[:at] + junk + good[at + cut :]
    if damaged != good:
        with pytest.raises(BadBatchError):
            read(damaged)
    with pytest.raises(BadBatchError):
        read(junk)
