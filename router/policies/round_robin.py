"""A policy that takes the eligible replicas in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.types import Choice, Load, RoutingRequest


class RoundRobin:
    """The next eligible slot after the last one chosen, so that a replica that comes or goes
    shifts no turns."""

    def __init__(self) -> None:
        self._last = -1

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the choice needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:  # noqa: ARG002
        """The reason is always `turn`."""
        eligible = ask.eligible
        later = eligible >> (self._last + 1) << (self._last + 1)
        mask = later or eligible
        self._last = slot = (mask & -mask).bit_length() - 1
        return Choice(slot, "turn")
