"""The shortlist against the same thing said plainly, with lists of slots and no masks."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from router.policies.shortlist import (
    CONTEXT_SHARE,
    GROUP,
    HOLDERS,
    REMEMBERED,
    REQUEST_TOKENS,
    SWEPT,
    Shortlist,
)
from router.types import Load, RoutingRequest, slots


class PlainShortlist:
    """What Shortlist must be equal to, number by number drawn from the same chance."""

    def __init__(self, rng: random.Random) -> None:
        self.chance = rng.random
        self.best: list[int] = []
        self.at = int(rng.random() * 65_536)

    def pick(self, ask: RoutingRequest, loads: Sequence[Load]) -> list[tuple[float, list[int]]]:
        fleet = slots(ask.eligible)
        self.best = [slot for slot in self.best if slot in fleet]
        budget = HOLDERS
        holders: dict[int, list[int]] = {}
        groups: list[tuple[float, list[int]]] = []
        for depth, mask in ask.held:
            group = [slot for slot in slots(mask) if slot in fleet]
            if not group:
                continue
            found: list[int] = []
            if budget:
                turn = int(self.chance() * (group[-1] + 1))
                around = [s for s in group if s >= turn] + [s for s in group if s < turn]
                found = around[: min(GROUP, budget)]
                budget -= len(found)
            groups.append((depth, found))
            holders.update(dict.fromkeys(group, found))
        at = self.at % len(fleet)
        self.at = at + SWEPT + budget
        swept = [fleet[place % len(fleet)] for place in range(at, self.at)]
        others: list[int] = []
        ranked = []
        for slot in {*self.best, *swept}:
            load = loads[slot]
            work = load.queued_tokens + load.in_flight * REQUEST_TOKENS
            work += load.context_tokens * CONTEXT_SHARE
            ranked.append((work / load.weight, self.chance(), slot))
            found = holders.get(slot, others)
            if slot not in found:
                found.append(slot)
        self.best = [slot for _, _, slot in sorted(ranked)[:REMEMBERED]]
        return [*groups, (0.0, others)]


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from([5, 25, 64, 200, 1000]), seed=st.integers(0, 1 << 32))
def test_it_picks_what_the_plain_computation_picks(size: int, seed: int) -> None:
    rng = random.Random(seed)
    lists, plain = Shortlist(random.Random(seed)), PlainShortlist(random.Random(seed))
    everybody = eligible = (1 << size) - 1
    loads = [Load(weight=rng.choice([1.0, 0.5])) for _ in range(size)]
    for _ in range(25):
        for load in rng.sample(loads, min(size, 20)):
            load.queued_tokens = 1000.0 * rng.randrange(4)
            load.in_flight = rng.randrange(3)
            load.context_tokens = 100.0 * rng.randrange(9)
        if rng.random() < 0.3:  # some are not healthy, or were tried already
            eligible = rng.getrandbits(size) | rng.getrandbits(size) or everybody
        held, left = [], everybody
        for depth in (30.0, 20.0, 10.0)[: rng.randrange(4)]:
            mask = left & (
                rng.getrandbits(size) if rng.random() < 0.5 else 1 << rng.randrange(size)
            )
            left &= ~mask
            if mask:
                held.append((depth, mask))
        ask = RoutingRequest(eligible, 100.0, held, 1.0, "", 0, 0.0)
        picked = [(depth, list(found)) for depth, found in lists.pick(ask, loads)]
        assert picked == plain.pick(ask, loads)
