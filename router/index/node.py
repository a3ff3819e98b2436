"""A run of consecutive blocks that no chain leaves in the middle, and who holds it."""

from __future__ import annotations

from collections.abc import Sequence
from sys import byteorder

import msgspec

from router.types import Chain


class Node(msgspec.Struct, gc=False, eq=False):
    """One edge of the radix tree.

    A node does not know its children: the one that continues with hash h is what the index finds
    under h. So there are no reference cycles, and the garbage collector need not look at nodes.
    """

    run: bytes
    """The hashes, 8 bytes each as in a chain; never empty. Not an array, since the collector visits
    those: with ten million blocks a full collection took twice as long. Not a bytearray, which
    takes 23 bytes more, and room to grow."""
    last: int
    """The last hash of the run."""
    start: int
    """The number of blocks before the run, in every chain that has it."""
    parent: Node | None
    """The node that ends just before start; None when start is 0."""
    full: int
    """Mask of the slots that hold the whole run; never 0 while the node is in the tree. Where that
    is one slot, it is mostly its room's own number: among a thousand replicas, a mask is larger
    than a node."""
    partial: dict[int, int] | None = None
    """slot -> leading blocks held, for those that hold a part: at least one block, not all. None
    when there are none."""
    children: int = 0
    """The number of nodes that have this one as parent."""


def hash_at(run: bytes, position: int) -> int:
    """One of the hashes of a run."""
    return int.from_bytes(run[8 * position : 8 * position + 8], byteorder)


def common(run: bytes, chain: Chain, depth: int, most: int) -> int:
    """How many blocks of the run the chain has from depth on, given that it has the first.

    most is the largest possible answer.
    """
    return agreed(memoryview(run).cast("Q"), chain, depth, 1, most)


def agreed(hashes: Sequence[int], chain: Chain, depth: int, least: int, most: int) -> int:
    """How many of the hashes the chain has from depth on: at least `least` are known to agree, at
    most `most` are asked for.

    Chained hashes agree up to one place and differ after it, so bisection finds it.
    """
    while least < most:
        middle = (least + most + 1) >> 1
        if hashes[middle - 1] == chain[depth + middle - 1]:
            least = middle
        else:
            most = middle - 1
    return least


def stay(
    node: Node, alive: int, reach: int, spans: Sequence[int], found: list[tuple[int, int]]
) -> int:
    """The mask of those who hold at least the first reach blocks of a node.

    alive is the mask of those who hold everything before the node (0 at the top of the tree). Those
    of them who hold less of it are appended to found as (leading weight held, mask), least first.
    """
    staying = node.full
    leaving = {0: alive & ~staying}
    for slot, count in (node.partial or {}).items():
        bit = 1 << slot
        leaving[0] &= ~bit
        if count >= reach:
            staying |= bit
        else:
            leaving[count] = leaving.get(count, 0) | bit
    found.extend((spans[node.start + k], mask) for k, mask in sorted(leaving.items()) if mask)
    return staying


def trim(node: Node) -> int:
    """Cut the run to what its longest holder has; nobody holds all of it. Returns blocks cut."""
    partial = node.partial
    assert partial
    longest = max(partial.values())
    for slot in [slot for slot, count in partial.items() if count == longest]:
        node.full |= 1 << slot
        del partial[slot]
    node.partial = partial or None
    return cut(node, longest)


def cut(node: Node, count: int) -> int:
    """Keep the first `count` blocks of a run, at least one.

    Returns the number of blocks removed.
    """
    gone = (len(node.run) >> 3) - count
    node.run = node.run[: 8 * count]
    node.last = hash_at(node.run, count - 1)
    return gone
