"""A policy that takes the replica with the fewest requests in flight."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import inf

from router.types import Choice, Load, RoutingRequest, slots


class LeastLoaded:
    """Fewest requests in flight, this one included, divided by the weight; ties at random. Option:
    `seed`."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed).random

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the choice needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """The reason is always `least`."""
        least = inf
        chosen = -1
        ties = 1
        for slot in slots(ask.eligible):
            load = loads[slot]
            busy = (load.in_flight + 1) / load.weight
            if busy < least:
                least = busy
                chosen = slot
                ties = 1
            elif busy == least:
                ties += 1
                if self._random() * ties < 1.0:
                    chosen = slot
        return Choice(chosen, "least")
