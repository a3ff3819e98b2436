"""Which of very many replicas are worth computing the cost of.

Holders of the prefix, the deepest groups first; the least loaded ones remembered from earlier
choices; and the next few of a sweep through the fleet. Remembering the least loaded of what was
sampled finds nearly the least loaded of all ("power of d choices with memory", Mitzenmacher,
Prabhakar and Shah, FOCS 2002) at a cost that does not grow with the fleet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from router.types import Load, RoutingRequest, slots

HOLDERS = 6
"""Holders looked at, all groups together."""
GROUP = 4
"""Holders looked at in one group, from a random place on."""
REMEMBERED = 4
SWEPT = 3
"""Replicas looked at whatever their load and content; those holders leave free come on top."""
REQUEST_TOKENS = 256.0
CONTEXT_SHARE = 0.1
"""For ranking by load: a request in flight weighs as much as so many queued prompt tokens, and a
token of its context as much as this part of one."""


def everybody(ask: RoutingRequest) -> list[tuple[float, Sequence[int]]]:
    """All of `ask.eligible`: (leading tokens held, slots), deepest first."""
    left = ask.eligible
    groups: list[tuple[float, Sequence[int]]] = []
    for depth, mask in ask.held:
        mask &= left
        if mask:
            left ^= mask
            groups.append((depth, slots(mask)))
    groups.append((0.0, slots(left)))
    return groups


class Shortlist:
    """The mutable state: `_best`, the slots remembered as least loaded, and `_at`, the sweep's
    place."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._best: list[int] = []
        self._at = int(rng.random() * 65_536)

    def pick(self, ask: RoutingRequest, loads: Sequence[Load]) -> list[tuple[float, Sequence[int]]]:
        """About 13 of `ask.eligible`, at least one: (leading tokens held, slots), deepest first."""
        eligible = ask.eligible
        chance = self._random
        budget = HOLDERS
        holders = 0
        groups: list[tuple[float, int, list[int]]] = []
        for depth, mask in ask.held:
            mask &= eligible
            if not mask:
                continue
            holders |= mask
            found: list[int] = []
            if budget:
                turn = int(chance() * mask.bit_length())
                high = mask >> turn << turn
                take = min(GROUP, budget)
                for part in (high, mask ^ high):
                    while part and take:
                        low = part & -part
                        found.append(low.bit_length() - 1)
                        part ^= low
                        take -= 1
                budget -= len(found)
            groups.append((depth, mask, found))
        fleet = slots(eligible)
        size = len(fleet)
        at = self._at % size
        self._at = end = at + SWEPT + budget
        swept = fleet[at:end] if end <= size else [fleet[place % size] for place in range(at, end)]
        others: list[int] = []
        ranked = []
        for slot in {*self._best, *swept}:
            if not eligible >> slot & 1:
                continue  # remembered, and not to be had any more
            load = loads[slot]
            work = (
                load.queued_tokens
                + load.in_flight * REQUEST_TOKENS
                + load.context_tokens * CONTEXT_SHARE
            )
            ranked.append((work / load.weight, chance(), slot))
            if not holders >> slot & 1:
                others.append(slot)
                continue
            for _, mask, found in groups:
                if mask >> slot & 1:
                    if slot not in found:
                        found.append(slot)
                    break
        ranked.sort()
        self._best = [slot for _, _, slot in ranked[:REMEMBERED]]
        return [*((depth, found) for depth, _, found in groups), (0.0, others)]
