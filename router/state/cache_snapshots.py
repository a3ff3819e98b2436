"""All that one replica holds, as bytes: what a router that starts is warmed with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct, error
from typing import Final

import msgspec

from router.index import ByteIndex
from router.state.chain_dictionary import ChainDictionary
from router.state.codec import HELD, MAX_CHAIN_BLOCKS, BadBatchError, Writer, read
from router.types import Chain

_HEAD: Final = Struct("<4sQQQI")
"""Magic, position (milliseconds, count), wall clock in milliseconds, blocks."""
_MAGIC: Final = b"WM1\n"
NO_LIMIT: Final = 1 << 62

Position = tuple[int, int]
"""An id of the stream: milliseconds, count."""


class CacheSnapshot(msgspec.Struct):
    """What one replica held."""

    position: Position
    """All the stream told up to here is in it."""
    age: float
    """Seconds since it was made, by this machine's clock; never negative."""
    touches: list[tuple[float, Chain]]
    """(seconds of age when the map was made, chain), oldest first."""


def encode(
    replica: int,
    touches: Iterable[tuple[float, Chain]],
    position: Position,
    now: float,
    wall: float,
) -> Iterator[bytes | None]:
    """Yields None now and then, so that others get their turn; at last the map.

    replica: its name_key. now in monotonic seconds, as touches are; wall in seconds since 1970.
    """
    writer = Writer()
    dictionary = ChainDictionary(NO_LIMIT)
    blocks = 0
    for count, (when, chain) in enumerate(touches, 1):
        if len(chain) > MAX_CHAIN_BLOCKS:
            chain = chain[:MAX_CHAIN_BLOCKS]
        depth = dictionary.depth(chain)
        tail = chain[depth:]
        key = chain[depth - 1] if depth else 0
        dictionary.learn(depth, key, tail)
        blocks += len(tail)
        writer.held(replica, max(now - when, 0.0), depth, key, tail)
        if count % 64 == 0:
            yield None
    head = _HEAD.pack(_MAGIC, *position, int(wall * 1000), blocks & 0xFFFFFFFF)
    yield head + writer.batch(0, 0)


def decode(data: bytes, wall: float) -> CacheSnapshot:
    """Read a snapshot. Raises BadBatchError when it is garbage."""
    position, made, _ = peek(data)
    dictionary = ChainDictionary(NO_LIMIT)
    touches = []
    for fact in read(data[_HEAD.size :]).facts:
        tail = fact.tail
        if fact.kind != HELD or tail is None:
            raise BadBatchError(f"a map cannot hold a fact of kind {fact.kind}")
        chain = dictionary.learn(fact.depth, fact.key, tail)
        if chain is None:
            raise BadBatchError("a map refers to a chain it does not hold")
        touches.append((fact.age, chain[: fact.depth + len(tail)]))
    return CacheSnapshot(position, max(wall - made, 0.0), touches)


def peek(data: bytes) -> tuple[Position, float, int]:
    """(position, wall clock when it was made, blocks) of a map. Raises BadBatchError."""
    try:
        magic, first, second, wall, blocks = _HEAD.unpack_from(data)
    except error:
        raise BadBatchError(f"{len(data)} bytes are too few for a map") from None
    if magic != _MAGIC:
        raise BadBatchError(f"begins with {magic!r}, not {_MAGIC!r}")
    return (first, second), wall / 1000, blocks


def adopt(
    index: ByteIndex, slot: int, found: CacheSnapshot, dictionary: ChainDictionary, now: float
) -> None:
    """Put a map into the index, in order of last use with what is there, and into the
    dictionary."""
    touches = [(now - found.age - age, chain) for age, chain in found.touches]
    own = list(index.touches(slot))
    if own:
        touches = sorted(touches + own, key=lambda touch: touch[0])
        index.forget(slot)
    for _, chain in found.touches:
        if chain:
            dictionary.remember(chain)
    for when, chain in touches:
        index.record(slot, chain, when)
