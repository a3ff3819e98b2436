"""Chains that every router knows, so that a fact need only carry what comes after one of them.

An agent's step n + 1 repeats the chain of step n. Every router keeps such a book; it grows by what
the stream carries, in the stream's order. A chain is sent as (depth, hash of the block before that
depth, the hashes after it). A router that does not find that hash in its book says so, and the
others forget it.
"""

from __future__ import annotations

from array import array
from typing import Final

from router.types import Chain

STRIDE_BLOCKS: Final = 8
"""Besides its end, a chain is known by every so many blocks: where others may branch off."""
MAX_PART_BYTES: Final = 4 << 20
"""Bytes of each of the dictionary's four parts, about 25 for a block."""
ENTRY_BYTES: Final = 110
"""What an entry takes: a hash as a number, its place in a dict that is not full."""


class ChainDictionary:
    """Four parts by age. The first one fills; then it becomes the second, and the last is dropped.

    Chains are looked up for sending in the first two only, for reading in all four: what a sender
    takes for known the others know for sure, though their parts do not change at the same time.

    An entry is the hash at some depth of a chain -> an array that has it there. Arrays grow in
    place when a chain goes on where the array ends, so a session is one array.
    """

    def __init__(self, limit: int = MAX_PART_BYTES) -> None:
        self._limit = limit
        self._parts: list[dict[int, Chain]] = [{}, {}, {}, {}]
        self._bytes = 0
        """What the first part takes, about."""

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def forget(self, key: int) -> None:
        """Somebody does not know the chain of this hash."""
        for part in self._parts:
            part.pop(key, None)

    def depth(self, chain: Chain) -> int:
        """Leading blocks of a chain that all know, as far as the dictionary can tell."""
        first, second = self._parts[:2]
        length = len(chain)
        if not length:
            return 0
        last = chain[length - 1]
        if last in first or last in second:
            return length
        # Where a chain is known at a stride, it is at the strides before: bisect them.
        low, high = 0, length // STRIDE_BLOCKS
        while low < high:
            middle = (low + high + 1) >> 1
            key = chain[middle * STRIDE_BLOCKS - 1]
            if key in first or key in second:
                low = middle
            else:
                high = middle - 1
        found = low * STRIDE_BLOCKS
        for depth in range(min(found + STRIDE_BLOCKS, length) - 1, found, -1):
            key = chain[depth - 1]
            if key in first or key in second:
                return depth
        return found

    def find(self, key: int, depth: int) -> Chain | None:
        """An array whose block before depth has this hash."""
        for part in self._parts:
            found = part.get(key)
            if found is not None and len(found) >= depth and found[depth - 1] == key:
                return found
        return None

    def learn(self, depth: int, key: int, tail: Chain) -> Chain | None:
        """A chain of depth known blocks, the last with this hash, then those in tail.

        Returns an array that begins with the whole chain, and may be longer; it is the
        dictionary's: it may grow, and must not be changed. None when the hash is not known.
        """
        known: Chain
        if not depth:
            known = array("Q")
        else:
            found = self.find(key, depth)
            if found is None:
                return None
            known = found
            if tail and len(found) > depth:
                known = found[:depth]
                self._bytes += 8 * depth
        known.extend(tail)
        self._bytes += 8 * len(tail)
        # What only older parts knew is entered anew: it would be lost with them.
        recent = depth and key in self._parts[0]
        self._enter(known, depth if recent else 0, depth + len(tail))
        return known

    def remember(self, chain: Chain) -> None:
        """The others may know this chain: good for reading, not for sending. The array is the
        book's from now on: it may grow.
        """
        old = self._parts[2]
        for depth in range(STRIDE_BLOCKS, len(chain) + 1, STRIDE_BLOCKS):
            old.setdefault(chain[depth - 1], chain)
        old.setdefault(chain[-1], chain)

    def _enter(self, known: Chain, start: int, end: int) -> None:
        if start == end:
            return
        first = self._parts[0]
        for depth in range(
            start // STRIDE_BLOCKS * STRIDE_BLOCKS + STRIDE_BLOCKS, end + 1, STRIDE_BLOCKS
        ):
            first[known[depth - 1]] = known
        first[known[end - 1]] = known
        self._bytes += ((end - start) // STRIDE_BLOCKS + 1) * ENTRY_BYTES
        if self._bytes > self._limit:
            self._parts = [{}, *self._parts[:3]]
            self._bytes = 0
