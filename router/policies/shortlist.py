"""Which of very many replicas are worth computing the cost of.

Holders of the prefix, the deepest groups first; the least loaded ones remembered from earlier
choices; and the next few of a sweep through the fleet. Remembering the least loaded of what was
sampled finds nearly the least loaded of all ("power of d choices with memory", Mitzenmacher,
Prabhakar and Shah, FOCS 2002) at a cost that does not grow with the fleet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from router.types import Ask, Load, slots

HOLDERS = 8
"""Holders looked at, all groups together."""
GROUP = 4
"""Holders looked at in one group, from a random place on."""
REMEMBERED = 4
SWEPT = 4
"""Replicas looked at whatever their load and content; those holders leave free come on top."""
REQUEST_TOKENS = 256.0
CONTEXT_SHARE = 0.1
"""For ranking by load: a request in flight weighs as much as so many queued prompt tokens, and a
token of its context as much as this part of one."""


class Shortlist:
    """The mutable state: `_best`, the slots remembered as least loaded, and `_at`, the sweep's
    place."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._best: list[int] = []
        self._at = int(rng.random() * 65_536)

    def pick(self, ask: Ask, loads: Sequence[Load]) -> int:
        """A mask of about 16 of `ask.eligible`, never 0."""
        eligible = ask.eligible
        chance = self._random
        picked = 0
        budget = HOLDERS
        for _, mask in ask.held:
            mask &= eligible
            if not mask:
                continue
            turn = int(chance() * mask.bit_length())
            high = mask >> turn << turn
            take = min(GROUP, budget)
            for part in (high, mask ^ high):
                while part and take:
                    low = part & -part
                    picked |= low
                    part ^= low
                    take -= 1
                    budget -= 1
            if not budget:
                break
        fleet = slots(eligible)
        size = len(fleet)
        at = self._at
        self._at = end = at + SWEPT + budget
        ranked = []
        for slot in {*self._best, *[fleet[place % size] for place in range(at, end)]}:
            bit = 1 << slot
            if eligible & bit:
                picked |= bit
                load = loads[slot]
                work = (
                    load.queued_tokens
                    + load.in_flight * REQUEST_TOKENS
                    + load.context_tokens * CONTEXT_SHARE
                )
                ranked.append((work / load.weight, chance(), slot))
        ranked.sort()
        self._best = [slot for _, _, slot in ranked[:REMEMBERED]]
        return picked
