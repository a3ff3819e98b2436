"""Knows which prefixes replicas are computing right now, so that other requests can share them.

A request sent behind another one that has the same new prefix waits until that is computed, but it
would have to wait as long elsewhere, where it would compute the same itself. So for that
request, what is queued at a replica is of two kinds: other work, and its own prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import msgspec

from router.index.node import agreed
from router.types import NOTHING_SHARED, Chain


class Prefill(msgspec.Struct, gc=False, eq=False):
    """A run of blocks that one request has a replica compute: the chain from `start` on."""

    slot: int
    chain: Chain
    start: int


class Prefills:
    """The prefills under way, by the hash of their first block.

    It costs nothing while there are none. A lookup takes time by the prefills under way or by the
    blocks of the prompt, whichever are fewer. It is used from the event loop only.
    """

    __slots__ = ("_spans", "starts")

    def __init__(self, spans: Sequence[int]) -> None:
        """`spans` has, for each n, the weight of a chain's first n blocks."""
        self._spans = spans
        self.starts: dict[int, list[Prefill]] = {}
        """Hash of the first block computed -> prefills from there on. A hash covers what comes
        before it, so that these all start at the same block of the same prompt."""

    def blocks(self, weight: float) -> int:
        """The number of whole blocks that this leading weight covers."""
        return bisect_right(self._spans, weight) - 1

    def begin(self, slot: int, chain: Chain, held: float) -> Prefill | None:
        """Note that a replica is sent a prompt of which it holds the leading weight `held`. None
        where it holds every block."""
        start = self.blocks(held)
        if start >= len(chain):
            return None
        prefill = Prefill(slot, chain, start)
        self.starts.setdefault(chain[start], []).append(prefill)
        return prefill

    def end(self, prefill: Prefill) -> None:
        """Note that the prefill is done, or never will be. Call this once."""
        key = prefill.chain[prefill.start]
        others = self.starts[key]
        if len(others) == 1:
            del self.starts[key]
        else:
            others.remove(prefill)

    def shared(self, chain: Chain, blocks: int) -> dict[int, int]:
        """Slot -> weight of this prompt's prefix that is under way there.

        blocks: the most leading blocks that any replica holds or is about to hold. Nothing beyond
        them is shared.
        """
        starts = self.starts
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

    def tokens(
        self, chain: Chain, found: Sequence[tuple[int, int]], eligible: int, scale: float
    ) -> Mapping[int, float]:
        """By slot, the tokens of a prompt's prefix that the replica is computing now. found: what
        the index has of it, in its weight; scale: tokens of a unit of that."""
        depth = next((self.blocks(weight) for weight, mask in found if mask & eligible), 0)
        under_way = self.shared(chain, depth) if depth else None
        if not under_way:
            return NOTHING_SHARED
        return {slot: weight * scale for slot, weight in under_way.items()}
