"""Facts as bytes. A batch is what one router tells at a time; docs/operate/state.md has the layout.

Numbers are little-endian. Replicas are named in each batch's table by a hash of their name, since
slots differ between routers.
"""

from __future__ import annotations

import sys
from array import array
from functools import lru_cache
from struct import Struct, error
from typing import Final

import msgspec
import xxhash

from router.queue.session import Tail
from router.types import Chain

MAGIC: Final = b"WF1\n"
HEAD: Final = Struct("<4sIQQH")
"""Magic, checksum of all that follows it, router, number of the batch, names in the table."""
CHECKSUM_START: Final = 8
"""Where that what the checksum covers begins."""

ROUTED, FIRST, FINISHED, FAILED, FORGOT, RESIZED, IN_FLIGHT, HELLO, BYE, HELD, MISSING, KEPT = (
    range(1, 13)
)
PLACED, SENT, FREED, ENDED = range(13, 17)
"""These are told in the extension: routers that do not know them skip them."""

_ROUTED: Final = Struct("<BHIIII")
_REFERENCE: Final = Struct("<HH")
_KEY: Final = Struct("<Q")
_SERIAL: Final = Struct("<BI")
_NAMED: Final = Struct("<BH")
_RESIZED: Final = Struct("<BHQ")
_IN_FLIGHT: Final = Struct("<BI")
_OPEN: Final = Struct("<IHIIB")
_PLAIN: Final = Struct("<B")
_HELD: Final = Struct("<BHf")
_MISSING: Final = Struct("<BQ")
_KEPT: Final = Struct("<BHQ")
_EXTENSION: Final = 0xA7E3_5D19_C26B_0000
"""The table's last word where an extension is before it; its low 16 bits count that one's words."""
_ENTRY: Final = Struct("<BHI")
"""Of the extension: kind, bytes that follow, facts of the batch that come before it."""
_PLACED: Final = Struct("<IbBI16s")
_NUMBER: Final = Struct("<I")
_ENDED: Final = Struct("<II")
_END: Final = Struct("<QIQ")
NO_SESSION: Final = bytes(16)
MAX_TENANT_BYTES: Final = 255

MAX_CHAIN_BLOCKS: Final = 0xFFFF
"""Blocks of a chain that are sent; the spans end before."""
MAX_UINT32: Final = 0xFFFFFFFF


class BadBatchError(ValueError):
    """Bytes that are no batch, or a fact that cannot be."""


@lru_cache(maxsize=16384)
def name_key(name: str) -> int:
    """What stands for a replica's name."""
    made: int = xxhash.xxh3_64_intdigest(name.encode())
    return made


class OpenRequest(msgspec.Struct, gc=False):
    """A request in flight, as a roll tells it."""

    serial: int
    replica: int
    uncached: float
    tokens: float
    first: bool


class QueuedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that was placed, as its router's queue knows it."""

    serial: int
    priority: int
    held: bool
    """It waits in its replica's lane."""
    counted: float
    """Tokens that its session counts for."""
    session: bytes
    """Names its session, 16 bytes; NO_SESSION when it has none."""
    tenant: str


class Fact(msgspec.Struct, gc=False):
    """One fact, read. Which fields mean something depends on the kind."""

    kind: int
    replica: int = 0
    """The replica's name_key."""
    serial: int = 0
    """Which of the router's requests, modulo 2**32."""
    size: int = 0
    """Canonical bytes of the prompt; tokens of a resized cache."""
    uncached: float = 0.0
    tokens: float = 0.0
    depth: int = 0
    """Blocks of the chain that are not in tail."""
    key: int = 0
    """Hash of the last of those; the hash somebody misses; the key of what a replica keeps."""
    tail: Chain | None = None
    age: float = 0.0
    """Seconds since the chain was used."""
    open: list[OpenRequest] | None = None
    queued: QueuedRequest | None = None
    own: float | None = None
    """Tokens that a session has to itself after an answer; None without one."""
    end: Tail | None = None
    """Of the answered prompt, where that tells its session."""


class Writer:
    """Puts facts together, then `batch` makes them bytes."""

    __slots__ = ("count", "extension", "pieces", "size", "table")

    def __init__(self, extension: list[bytes] | None = None) -> None:
        """extension: an empty list where this router tells of its queue."""
        self.extension = extension
        self.pieces: list[bytes] = []
        self.table: dict[int, int] = {}
        self.size = 0
        """Bytes of the hashes in it: the most of a large batch."""
        self.count = 0

    def _place(self, replica: int) -> int:
        table = self.table
        place = table.get(replica)
        if place is None:
            place = table[replica] = len(table)
        return place

    def routed(
        self,
        replica: int,
        serial: int,
        size: int,
        uncached: float,
        tokens: float,
        depth: int,
        key: int,
        tail: Chain,
    ) -> None:
        """A request was sent to a replica."""
        self.pieces.append(
            _ROUTED.pack(
                ROUTED,
                self._place(replica),
                serial & MAX_UINT32,
                min(size, MAX_UINT32),
                min(int(uncached), MAX_UINT32),
                min(int(tokens), MAX_UINT32),
            )
        )
        self._chain(depth, key, tail)

    def _chain(self, depth: int, key: int, tail: Chain) -> None:
        self.count += 1
        self.pieces.append(_REFERENCE.pack(depth, len(tail)))
        if depth:
            self.pieces.append(_KEY.pack(key))
        if tail:
            hashes = to_bytes(tail)
            self.size += len(hashes)
            self.pieces.append(hashes)

    def request_fact(self, kind: int, serial: int) -> None:
        """FIRST, FINISHED or FAILED."""
        self.count += 1
        self.pieces.append(_SERIAL.pack(kind, serial & MAX_UINT32))

    def forgot(self, replica: int) -> None:
        """A replica's cache is empty."""
        self.count += 1
        self.pieces.append(_NAMED.pack(FORGOT, self._place(replica)))

    def resized(self, replica: int, tokens: int) -> None:
        """A replica's cache has room for so many tokens."""
        self.count += 1
        self.pieces.append(_RESIZED.pack(RESIZED, self._place(replica), tokens))

    def kept(self, replica: int, key: int) -> None:
        """A replica keeps a response or a conversation."""
        self.count += 1
        self.pieces.append(_KEPT.pack(KEPT, self._place(replica), key))

    def in_flight(self, entries: list[OpenRequest]) -> None:
        """All requests in flight, and no others."""
        self.count += 1
        self.pieces.append(_IN_FLIGHT.pack(IN_FLIGHT, len(entries)))
        for e in entries:
            self.pieces.append(
                _OPEN.pack(
                    e.serial & MAX_UINT32,
                    self._place(e.replica),
                    min(int(e.uncached), MAX_UINT32),
                    min(int(e.tokens), MAX_UINT32),
                    e.first,
                )
            )

    def plain(self, kind: int) -> None:
        """HELLO (whoever hears it calls the roll) or BYE."""
        self.count += 1
        self.pieces.append(_PLAIN.pack(kind))

    def held(self, replica: int, age: float, depth: int, key: int, tail: Chain) -> None:
        """A replica has a chain, last used age seconds ago."""
        self.pieces.append(_HELD.pack(HELD, self._place(replica), age))
        self._chain(depth, key, tail)

    def missing(self, key: int) -> None:
        """The chain of this hash is not known here."""
        self.count += 1
        self.pieces.append(_MISSING.pack(MISSING, key))

    def placed(self, request: QueuedRequest) -> None:
        """The queue's part of a request that was routed."""
        tenant = request.tenant.encode()[:MAX_TENANT_BYTES]
        counted = min(int(request.counted), MAX_UINT32)
        packed = _PLACED.pack(
            request.serial & MAX_UINT32, request.priority, request.held, counted, request.session
        )
        self._extend(PLACED, packed + tenant)

    def queue_fact(self, kind: int, serial: int) -> None:
        """SENT (it was held before) or FREED."""
        self._extend(kind, _NUMBER.pack(serial & MAX_UINT32))

    def ended(self, serial: int, own: float | None, end: Tail | None) -> None:
        """An answer has ended, for its session."""
        tokens = MAX_UINT32 if own is None else min(int(own), MAX_UINT32 - 1)
        packed = _ENDED.pack(serial & MAX_UINT32, tokens)
        if end is not None:
            packed += _END.pack(end.block, min(end.length, MAX_UINT32), end.digest)
        self._extend(ENDED, packed)

    def _extend(self, kind: int, data: bytes) -> None:
        assert self.extension is not None
        self.extension.append(_ENTRY.pack(kind, len(data), self.count) + data)
        self.size += _ENTRY.size + len(data)
        self.count += 1

    def _table(self) -> Chain:
        """The names; then words that no fact refers to, which a router that knows no extension
        takes for names."""
        words = array("Q", self.table)
        if self.extension is not None:
            data = b"".join(self.extension)
            data += bytes(-len(data) % 8)
            words.extend(from_bytes(data))
            words.append(_EXTENSION | len(data) >> 3)
        return words

    def batch(self, router: int, number: int) -> bytes:
        """All of it. The writer can be dropped then."""
        names = self._table()
        body = b"".join((to_bytes(names), *self.pieces))
        head = HEAD.pack(MAGIC, 0, router, number, len(names))[CHECKSUM_START:]
        check = xxhash.xxh32_intdigest(body, xxhash.xxh32_intdigest(head))
        return b"".join((MAGIC, check.to_bytes(4, "little"), head, body))


class Batch(msgspec.Struct):
    """A batch, decoded."""

    router: int
    number: int
    facts: list[Fact]
    tells_queue: bool = False
    """Its router tells of its queue."""


def read(data: bytes) -> Batch:
    """Raises BadBatchError for anything `Writer` does not make."""
    try:
        magic, check, router, number, count = HEAD.unpack_from(data)
    except error:
        raise BadBatchError(f"{len(data)} bytes are too few for a batch") from None
    if magic != MAGIC:
        raise BadBatchError(f"begins with {magic!r}, not {MAGIC!r}")
    body = memoryview(data)[HEAD.size :]
    head = xxhash.xxh32_intdigest(data[CHECKSUM_START : HEAD.size])
    if xxhash.xxh32_intdigest(body, head) != check:
        raise BadBatchError("the checksum does not fit")
    try:
        facts = _facts(body, count)
        extension = _extension(body, count)
        if extension is None:
            return Batch(router, number, facts)
        return Batch(router, number, _merged(facts, extension), tells_queue=True)
    except (error, IndexError, ValueError) as wrong:
        raise BadBatchError(f"a fact is cut off or refers to no name: {wrong}") from None


def _extension(body: memoryview, count: int) -> memoryview | None:
    """The bytes at the table's end that are no names; None where there are none."""
    end = 8 * count
    if not count:
        return None
    last = _KEY.unpack_from(body, end - 8)[0]
    words = last & 0xFFFF
    if last - words != _EXTENSION or words >= count:
        return None
    return body[end - 8 - 8 * words : end - 8]


def _merged(facts: list[Fact], extension: memoryview) -> list[Fact]:
    """All facts in the order they were told. Kinds of a later version are skipped."""
    merged: list[Fact] = []
    at = taken = skipped = 0
    end = len(extension) - _ENTRY.size
    while at <= end and extension[at]:  # zeros fill up the last word
        kind, length, before = _ENTRY.unpack_from(extension, at)
        at += _ENTRY.size
        data = extension[at : at + length]
        if len(data) < length:
            raise IndexError(f"{length} bytes are told, and the extension ends")
        at += length
        own = before - len(merged) - skipped
        merged += facts[taken : taken + own]
        taken += own
        fact = _queue_fact(kind, data)
        if fact is None:
            skipped += 1
        else:
            merged.append(fact)
    merged += facts[taken:]
    return merged


def _queue_fact(kind: int, data: memoryview) -> Fact | None:
    if kind == PLACED:
        serial, priority, held, counted, session = _PLACED.unpack_from(data)
        tenant = bytes(data[_PLACED.size :]).decode(errors="ignore")
        placed = QueuedRequest(serial, priority, bool(held), float(counted), session, tenant)
        return Fact(kind, serial=serial, queued=placed)
    if kind in (SENT, FREED):
        return Fact(kind, serial=_NUMBER.unpack_from(data)[0])
    if kind == ENDED:
        serial, tokens = _ENDED.unpack_from(data)
        own = None if tokens == MAX_UINT32 else float(tokens)
        end = None
        if len(data) >= _ENDED.size + _END.size:
            end = Tail(*_END.unpack_from(data, _ENDED.size))
        return Fact(kind, serial=serial, own=own, end=end)
    return None


def _facts(body: memoryview, count: int) -> list[Fact]:
    names = from_bytes(body[: 8 * count])
    at = 8 * count
    end = len(body)
    facts: list[Fact] = []
    while at < end:
        kind = body[at]
        if kind == ROUTED:
            _, place, serial, size, uncached, tokens = _ROUTED.unpack_from(body, at)
            at += _ROUTED.size
            depth, key, tail, at = _read_chain(body, at)
            fact = Fact(
                kind, names[place], serial, size, float(uncached), float(tokens), depth, key, tail
            )
        elif kind in (FIRST, FINISHED, FAILED):
            fact = Fact(kind, serial=_SERIAL.unpack_from(body, at)[1])
            at += _SERIAL.size
        elif kind == HELD:
            _, place, age = _HELD.unpack_from(body, at)
            at += _HELD.size
            depth, key, tail, at = _read_chain(body, at)
            fact = Fact(kind, names[place], age=age, depth=depth, key=key, tail=tail)
        elif kind == IN_FLIGHT:
            entries = _IN_FLIGHT.unpack_from(body, at)[1]
            at += _IN_FLIGHT.size
            fact = Fact(kind, open=[])
            assert fact.open is not None
            for _ in range(entries):
                serial, place, uncached, tokens, first = _OPEN.unpack_from(body, at)
                at += _OPEN.size
                fact.open.append(
                    OpenRequest(serial, names[place], float(uncached), float(tokens), bool(first))
                )
        elif kind == FORGOT:
            fact = Fact(kind, names[_NAMED.unpack_from(body, at)[1]])
            at += _NAMED.size
        elif kind == RESIZED:
            _, place, size = _RESIZED.unpack_from(body, at)
            fact = Fact(kind, names[place], size=size)
            at += _RESIZED.size
        elif kind == KEPT:
            _, place, key = _KEPT.unpack_from(body, at)
            fact = Fact(kind, names[place], key=key)
            at += _KEPT.size
        elif kind == MISSING:
            fact = Fact(kind, key=_MISSING.unpack_from(body, at)[1])
            at += _MISSING.size
        elif kind in (HELLO, BYE):
            fact = Fact(kind)
            at += _PLAIN.size
        else:
            raise ValueError(f"no fact is of kind {kind}")
        facts.append(fact)
    return facts


def _read_chain(body: memoryview, at: int) -> tuple[int, int, Chain, int]:
    depth, blocks = _REFERENCE.unpack_from(body, at)
    at += _REFERENCE.size
    key = 0
    if depth:
        key = _KEY.unpack_from(body, at)[0]
        at += _KEY.size
    end = at + 8 * blocks
    if end > len(body):
        raise IndexError(f"{blocks} blocks are told, and the batch ends")
    return depth, key, from_bytes(body[at:end]), end


def to_bytes(hashes: Chain) -> bytes:
    """Eight bytes each, little-endian."""
    if sys.byteorder == "big":
        hashes = hashes[:]
        hashes.byteswap()
    return hashes.tobytes()


def from_bytes(data: memoryview | bytes) -> Chain:
    """The reverse of to_bytes."""
    hashes = array("Q")
    hashes.frombytes(data)
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes
