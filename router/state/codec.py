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

from router.types import Chain

MAGIC: Final = b"WF1\n"
HEAD: Final = Struct("<4sIQQH")
"""Magic, checksum of all that follows it, router, number of the batch, names in the table."""
CHECKSUM_START: Final = 8
"""Where that what the checksum covers begins."""

ROUTED, FIRST, FINISHED, FAILED, FORGOT, RESIZED, IN_FLIGHT, HELLO, BYE, HELD, MISSING, KEPT = (
    range(1, 13)
)

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


class Writer:
    """Puts facts together, then `batch` makes them bytes."""

    __slots__ = ("count", "pieces", "size", "table")

    def __init__(self) -> None:
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

    def batch(self, router: int, number: int) -> bytes:
        """All of it. The writer can be dropped then."""
        names = array("Q", self.table)
        body = b"".join((to_bytes(names), *self.pieces))
        head = HEAD.pack(MAGIC, 0, router, number, len(names))[CHECKSUM_START:]
        check = xxhash.xxh32_intdigest(body, xxhash.xxh32_intdigest(head))
        return b"".join((MAGIC, check.to_bytes(4, "little"), head, body))


class Batch(msgspec.Struct):
    """A batch, read."""

    router: int
    number: int
    facts: list[Fact]


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
        return Batch(router, number, _facts(body, count))
    except (error, IndexError, ValueError) as wrong:
        raise BadBatchError(f"a fact is cut off or refers to no name: {wrong}") from None


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
