"""Facts about queues: as bytes, for routers that know them and routers that do not."""

from __future__ import annotations

from array import array
from struct import pack

from router.queue.session import Tail
from router.state.codec import (
    BYE,
    ENDED,
    FINISHED,
    FREED,
    HEAD,
    PLACED,
    ROUTED,
    SENT,
    QueuedRequest,
    Writer,
    read,
)

REPLICA = 99
PLACED_ONE = QueuedRequest(7, -1, True, 1234.0, bytes(range(16)), "tenänt")
END = Tail(1 << 63, 4, 5)


def written(extension: list[bytes] | None) -> Writer:
    """One request's way, with or without what the queue tells of it."""
    writer = Writer(extension)
    writer.routed(REPLICA, 7, 100, 50.0, 60.0, 0, 0, array("Q", [1, 2, 3]))
    if extension is not None:
        writer.placed(PLACED_ONE)
        writer.queue_fact(SENT, 7)
        writer.queue_fact(FREED, 7)
    writer.request_fact(FINISHED, 7)
    if extension is not None:
        writer.ended(7, 55.0, END)
        writer.ended(8, None, None)
    writer.plain(BYE)
    return writer


def test_queue_facts_are_read_in_the_order_they_were_told() -> None:
    batch = read(written([]).batch(5, 6))
    assert batch.tells_queue
    kinds = [ROUTED, PLACED, SENT, FREED, FINISHED, ENDED, ENDED, BYE]
    assert [fact.kind for fact in batch.facts] == kinds
    assert batch.facts[1].queued == PLACED_ONE
    assert (batch.facts[5].own, batch.facts[5].end) == (55.0, END)
    assert (batch.facts[6].own, batch.facts[6].end) == (None, None)


def test_a_router_without_extensions_reads_what_it_knew_before() -> None:
    """Behind the table such a router finds the facts of the version before, to the byte. The
    table's first names are the same, and it never looks at those that no fact refers to."""
    plain, extended = written(None).batch(5, 6), written([]).batch(5, 6)
    before, names = HEAD.unpack_from(plain)[4], HEAD.unpack_from(extended)[4]
    assert extended[HEAD.size :][: 8 * before] == plain[HEAD.size :][: 8 * before]
    assert extended[HEAD.size + 8 * names :] == plain[HEAD.size + 8 * before :]
    assert not read(plain).tells_queue


def test_a_batch_without_facts_says_that_its_router_tells_of_its_queue() -> None:
    assert read(Writer([]).batch(5, 6)).tells_queue
    assert not read(Writer().batch(5, 6)).tells_queue


def test_kinds_of_a_later_version_are_skipped() -> None:
    writer = Writer([])
    writer.plain(BYE)
    writer._extend(200, b"something")
    writer.queue_fact(SENT, 7)
    writer.plain(BYE)
    writer._extend(201, b"")
    writer.queue_fact(FREED, 8)
    batch = read(writer.batch(5, 6))
    assert [(fact.kind, fact.serial) for fact in batch.facts] == [
        (BYE, 0),
        (SENT, 7),
        (BYE, 0),
        (FREED, 8),
    ]


def test_a_later_version_may_add_to_a_fact() -> None:
    writer = Writer([])
    writer._extend(SENT, pack("<I", 7) + b"more")
    assert [fact.serial for fact in read(writer.batch(5, 6)).facts] == [7]
