"""A policy that takes the less loaded of two random replicas."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from router.types import Choice, Load, RoutingRequest, slots


class PowerOfTwo:
    """Two different eligible replicas at random; the one with fewer requests in flight. Option:
    `seed`."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed).random

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the choice needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """The reason is `least`, or `only_one` without an alternative."""
        fleet = slots(ask.eligible)
        size = len(fleet)
        if size == 1:
            return Choice(fleet[0], "only_one")
        first = int(self._random() * size)
        second = int(self._random() * (size - 1))
        if second >= first:
            second += 1
        one, other = fleet[first], fleet[second]
        here, there = loads[one], loads[other]
        if (there.in_flight + 1) / there.weight < (here.in_flight + 1) / here.weight:
            one = other
        return Choice(one, "least")
