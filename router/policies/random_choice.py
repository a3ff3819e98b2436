"""A policy that takes any eligible replica."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from router.types import Choice, Load, RoutingRequest, slots


class RandomChoice:
    """Every eligible replica with the same chance, whatever its load. Option: `seed`."""

    def __init__(self, *, seed: int | None = None) -> None:
        self._random = random.Random(seed).random

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the choice needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:  # noqa: ARG002
        """The reason is always `random`."""
        fleet = slots(ask.eligible)
        return Choice(fleet[int(self._random() * len(fleet))], "random")
