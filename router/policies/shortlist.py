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
"""The most holders that are looked at, in all groups together."""
WARM = 3
"""The most replicas that are looked at since they have the request's LoRA adapter loaded."""
GROUP = 4
"""The most holders that are looked at in one group, from a random place on."""
REMEMBERED = 4
SWEPT = 3
"""Replicas looked at whatever their load and content; those holders leave free come on top."""
REQUEST_TOKENS = 256.0
CONTEXT_SHARE = 0.1
"""For ranking by load: a request in flight weighs as much as so many queued prompt tokens, and a
token of its context as much as this part of one."""


class Shortlist:
    """The mutable state: `_best`, the slots remembered as least loaded, `_at`, the sweep's place,
    and `_eligible` with `_fleet`, the last mask asked for and its slots: masks rarely change, and
    to look at single bits of one for a thousand replicas is dear."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng.random
        self._best: list[int] = []
        self._at = int(rng.random() * 65_536)
        self._eligible = 0
        self._fleet: Sequence[int] = ()

    def pick(self, ask: RoutingRequest, loads: Sequence[Load]) -> list[tuple[float, Sequence[int]]]:
        """About 13 of `ask.eligible`, at least one: (leading tokens held, slots), deepest first."""
        eligible = ask.eligible
        if eligible != self._eligible:
            self._eligible = eligible
            self._fleet = slots(eligible)
            self._best = [slot for slot in self._best if eligible >> slot & 1]
        chance = self._random
        budget = HOLDERS
        holders = 0
        holding: list[tuple[int, list[int]]] = []
        groups: list[tuple[float, Sequence[int]]] = []
        for depth, mask in ask.held:
            mask &= eligible
            if not mask:
                continue
            holders |= mask
            found: list[int] = []
            if budget:
                width = mask.bit_length()
                turn = int(chance() * width)
                if mask.bit_count() == 1:
                    found.append(width - 1)
                    budget -= 1
                else:
                    high = mask >> turn << turn
                    take = min(GROUP, budget)
                    for part in (high, mask ^ high):
                        while part and take:
                            low = part & -part
                            found.append(low.bit_length() - 1)
                            part ^= low
                            take -= 1
                    budget -= len(found)
            holding.append((mask, found))
            groups.append((depth, found))
        fleet = self._fleet
        size = len(fleet)
        at = self._at % size
        self._at = end = at + SWEPT + budget
        swept = fleet[at:end] if end <= size else [fleet[place % size] for place in range(at, end)]
        if ask.adapter is not None:
            swept = [*swept, *self._warm(ask.eligible & ~ask.adapter.cold)]
        others: list[int] = []
        ranked = []
        for slot in {*self._best, *swept}:
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
            for mask, found in holding:
                if mask >> slot & 1:
                    if slot not in found:
                        found.append(slot)
                    break
        ranked.sort()
        self._best = [slot for _, _, slot in ranked[:REMEMBERED]]
        groups.append((0.0, others))
        return groups

    def _warm(self, mask: int) -> list[int]:
        """Some of these, from a random place on."""
        width = mask.bit_length()
        turn = int(self._random() * width)
        high = mask >> turn << turn
        found: list[int] = []
        for part in (high, mask ^ high):
            while part and len(found) < WARM:
                low = part & -part
                found.append(low.bit_length() - 1)
                part ^= low
        return found
