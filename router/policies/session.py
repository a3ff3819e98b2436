"""Sticky sessions: a key stays on the replica it was first sent to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from router.policies.cache_aware import CacheAware
from router.types import Choice, Load, RoutingRequest, slots

REMEMBERED = 100_000
"""The number of sessions remembered. The least recently used one is forgotten first."""
BOUND = 2.0
"""A prefix many clients share may not load its replica beyond this times the mean, plus one."""


class Session:
    """The client's key (session header, prompt_cache_key, user) decides; the first placement is
    the one that costs least (`cache_aware`), which also finds a session another router has placed.

    Without a key the prompt's first blocks stand in for it. They may be shared by many sessions, so
    their replica is left for the least cost while it is over the bound. A key's replica is left
    only when it is not eligible. Options: `remembered`, `seed`.
    """

    def __init__(self, *, remembered: int = REMEMBERED, seed: int | None = None) -> None:
        if remembered < 1:
            raise ValueError(f"remembered must be at least 1, not {remembered}")
        self._remembered = remembered
        self._slots: OrderedDict[str | int, int] = OrderedDict()
        self._names: dict[int, str] = {}
        self._cost = CacheAware(seed=seed)

    def members(self, names: Mapping[int, str]) -> None:
        """Forget the sessions of slots that are gone or belong to another replica now."""
        before = self._names
        self._names = dict(names)
        gone = {slot for slot, name in before.items() if names.get(slot) != name}
        if gone:
            for key in [key for key, slot in self._slots.items() if slot in gone]:
                del self._slots[key]

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Reasons: session, overflow, and those of cache_aware for first placements."""
        key = ask.key or ask.prefix
        if not key:
            return self._cost.choose(ask, loads)
        known = self._slots
        slot = known.get(key, -1)
        if slot >= 0 and ask.eligible >> slot & 1:
            known.move_to_end(key)
            if ask.key or self._has_room(slot, ask, loads):
                return Choice(slot, "session")
            return Choice(self._cost.choose(ask, loads).slot, "overflow")
        choice = self._cost.choose(ask, loads)
        known[key] = choice.slot
        known.move_to_end(key)
        if len(known) > self._remembered:
            known.popitem(last=False)
        return choice

    def _has_room(self, slot: int, ask: RoutingRequest, loads: Sequence[Load]) -> bool:
        fleet = slots(ask.eligible)
        total = sum([loads[other].in_flight for other in fleet])
        return loads[slot].in_flight <= BOUND * total / len(fleet) + 1.0
