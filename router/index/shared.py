"""The prefixes that most of the caches' memory goes to: a walk over the tree, in slices."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from time import perf_counter

import msgspec

from router.index.node import Node
from router.index.tree import ByteIndex
from router.types import slots

SLICE_S = 0.0007
"""Seconds of work between two yields."""
LOOKED = 16
"""Touches between two looks at the clock."""


class SharedPrefix(msgspec.Struct, frozen=True):
    """A prefix that several prompts or several replicas share."""

    size: int
    """Its weight: canonical bytes from the prompt's beginning."""
    holders: int
    """Mask of the slots that hold all of it; its copies are as many."""
    continuations: int
    """Ways in which known prompts go on after it."""
    used: float
    """When a holder last used it, in monotonic seconds."""


def shared_prefixes(index: ByteIndex, limit: int) -> Iterator[list[SharedPrefix] | None]:
    """The largest shared prefixes by size x copies, largest first.

    Yields None after each slice of work, so that the caller can let others run, and the result
    last. The index may change between slices: what is deleted then is left out. A prefix is shared
    when two replicas hold it or two known prompts go on differently after it.
    """
    best: list[tuple[int, int, Node]] = []
    number = count()
    # A list of all nodes would take tens of milliseconds to make, so the walk goes up from the
    # touches, one after the other by position: what changes meanwhile is met twice or not at all.
    seen: set[Node] = set()
    until = perf_counter() + SLICE_S
    for room in index.rooms():
        position = 0
        while position < len(room.order):
            node = room.order[position].tail
            position += 1
            while node is not None and node not in seen:
                copies = node.full.bit_count()
                if copies > 1 or node.children > 1:
                    seen.add(node)
                    size = index.spans[node.start + (len(node.run) >> 3)]
                    entry = (size * copies, next(number), node)
                    if len(best) < limit:
                        heapq.heappush(best, entry)
                    elif entry[0] > best[0][0]:
                        heapq.heapreplace(best, entry)
                node = node.parent
            if not position % LOOKED and perf_counter() > until:
                yield None
                until = perf_counter() + SLICE_S
    yield None
    kept = [node for _, _, node in sorted(best, reverse=True) if index.has(node)]
    # A prefix that only goes on to another one here, with the same holders, tells nothing more.
    within = {node.parent for node in kept if node.parent and node.parent.full == node.full}
    yield [
        SharedPrefix(
            index.spans[node.start + (len(node.run) >> 3)],
            node.full,
            node.children,
            max(index.room(slot).held[node].when for slot in slots(node.full)),
        )
        for node in kept
        if node not in within or node.children > 1
    ]
