"""Which replica holds what only one can answer for: stored responses, conversations.

An engine keeps them in its own memory, so a request that names one must go where it was made. Kept
here is a hash of the name and one of the replica's name, for the latest `MOST` of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import xxhash

from router.fleet.listener import FleetListener
from router.fleet.replica import Replica

MAX_HOLDERS: Final = 65_536
"""Names remembered, about 10 MB."""


class Holders(FleetListener):
    """Its mutable state: hash of a name -> hash of its holder's name, the latest used last."""

    def __init__(self, most: int = MAX_HOLDERS) -> None:
        self._most = most
        self._held: dict[int, int] = {}
        self._bits: dict[int, int] = {}
        """Hash of a replica's name -> its bit."""
        self._names: list[int] = []
        """By slot."""
        self.tell: Callable[[int, int], None] | None = None
        """Called with (slot, key) for what is new here: other routers are told."""

    def __len__(self) -> int:
        return len(self._held)

    def on_added(self, replica: Replica) -> None:
        """Find what it held before it left: the engine may have kept it."""
        name = xxhash.xxh3_64_intdigest(replica.name.encode())
        self._bits[name] = replica.bit
        self._names += [0] * (replica.slot + 1 - len(self._names))
        self._names[replica.slot] = name

    def on_removed(self, replica: Replica) -> None:
        """Nothing can be had from a replica that has left."""
        self._bits.pop(self._names[replica.slot], None)

    def find(self, key: int) -> int:
        """The holder's bit; 0 when it is not known, or not in the fleet."""
        name = self._held.get(key)
        return 0 if name is None else self._bits.get(name, 0)

    def remember(self, key: int, slot: int) -> None:
        """Note that this replica keeps it, as its answer said."""
        new = self._held.get(key) != self._names[slot]
        self.heard(key, slot)
        if new and self.tell is not None:
            self.tell(slot, key)

    def heard(self, key: int, slot: int) -> None:
        """Note that this replica keeps it, as another router reported."""
        held = self._held
        held.pop(key, None)
        held[key] = self._names[slot]
        if len(held) > self._most:
            del held[next(iter(held))]


def key_of(name: str, tenant: str = "") -> int:
    """What stands for the id of a response or a conversation. The same in every router.

    tenant: whose it is, which no other tenant's key finds; empty without tenants.
    """
    whole = f"{tenant}\0{name}" if tenant else name
    made: int = xxhash.xxh3_64_intdigest(whole.encode("utf-8", "surrogatepass"))
    return made
