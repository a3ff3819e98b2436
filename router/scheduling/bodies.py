"""Bodies with several prompts."""

from __future__ import annotations

from collections.abc import Sequence

from router.types import Chain, PrefixIndex, slots


def held_of_all(
    index: PrefixIndex, first: list[tuple[float, int]], more: Sequence[Chain], scale: float
) -> list[tuple[float, int]]:
    """What each slot holds of all of a body's prompts together, deepest first. first: what is held
    of the first one; scale: tokens of a unit of the index's weight."""
    held = {slot: tokens for tokens, mask in first for slot in slots(mask)}
    for chain in more:
        for weight, mask in index.match(chain):
            for slot in slots(mask):
                held[slot] = held.get(slot, 0.0) + weight * scale
    return [
        (tokens, 1 << slot)
        for slot, tokens in sorted(held.items(), key=lambda one: one[1], reverse=True)
    ]
