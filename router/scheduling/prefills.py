"""Prefixes that replicas are computing right now, for one request and the use of others.

A request sent behind another one that has the same new prefix waits until that is computed, but it
would have to wait as long elsewhere, where it would compute the same itself. So what is queued at a
replica is of two kinds for it: other work, and its own prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from router.index.node import agreed
from router.types import Chain


class Prefill(msgspec.Struct, gc=False, eq=False):
    """What one request has a replica compute: the chain's blocks from start on."""

    slot: int
    chain: Chain
    start: int


class Prefills:
    """The prefills under way, by the hash of their first block.

    Costs nothing while there are none, and a lookup the fewer of prefills under way and blocks of
    the prompt. Not thread-safe, as all on a request's way.
    """

    __slots__ = ("_size", "_spans", "_starts")

    def __init__(self, spans: Sequence[int]) -> None:
        """spans: the weight that a chain's first n blocks have, for each n."""
        self._spans = spans
        self._starts: dict[int, list[Prefill]] = {}
        """Hash of the first block computed -> prefills from there on. A hash covers what comes
        before it, so that these all start at the same block of the same prompt."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def blocks(self, weight: float) -> int:
        """Whole blocks that so much leading weight has."""
        return bisect_right(self._spans, weight) - 1

    def begin(self, slot: int, chain: Chain, held: float) -> Prefill | None:
        """The replica is sent a prompt, of which it holds the leading weight. None where it holds
        every block."""
        start = self.blocks(held)
        if start >= len(chain):
            return None
        prefill = Prefill(slot, chain, start)
        self._starts.setdefault(chain[start], []).append(prefill)
        self._size += 1
        return prefill

    def end(self, prefill: Prefill) -> None:
        """It has been computed, or never will be. To be called once."""
        key = prefill.chain[prefill.start]
        others = self._starts[key]
        if len(others) == 1:
            del self._starts[key]
        else:
            others.remove(prefill)
        self._size -= 1

    def shared(self, chain: Chain, blocks: int) -> dict[int, int]:
        """Slot -> weight of this prompt's prefix that is under way there.

        blocks: the most leading blocks that anybody holds, what is on its way included: nothing
        beyond is shared.
        """
        starts = self._starts
        if len(starts) < blocks:
            found = [
                prefills
                for key, prefills in starts.items()
                if (start := prefills[0].start) < blocks and chain[start] == key
            ]
        else:
            found = [starts[key] for key in chain[:blocks] if key in starts]
        shared: dict[int, int] = {}
        spans = self._spans
        for prefills in found:
            for each in prefills:
                most = min(blocks, len(each.chain))
                end = agreed(each.chain, chain, 0, each.start + 1, most)
                slot = each.slot
                shared[slot] = shared.get(slot, 0) + spans[end] - spans[each.start]
        return shared
