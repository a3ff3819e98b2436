"""Replicas as a data plane names them: ``ip:port``."""

from __future__ import annotations

from collections.abc import Iterable

from router.fleet.listener import FleetListener
from router.fleet.replica import Replica


class Endpoints(FleetListener):
    """Slots by ``ip:port``, and the other way round. The ranks of one port share its name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """By slot; empty where there is no replica."""
        self._bits: dict[str, int] = {}

    def on_added(self, replica: Replica) -> None:
        """A replica came."""
        host = f"[{replica.host}]" if ":" in replica.host else replica.host
        name = f"{host}:{replica.port}"
        self.names += [""] * (replica.slot + 1 - len(self.names))
        self.names[replica.slot] = name
        self._bits[name] = self._bits.get(name, 0) | replica.bit

    def on_removed(self, replica: Replica) -> None:
        """A replica left."""
        name, self.names[replica.slot] = self.names[replica.slot], ""
        bits = self._bits.get(name, 0) & ~replica.bit
        if bits:
            self._bits[name] = bits
        else:
            self._bits.pop(name, None)

    def mask(self, names: Iterable[str]) -> int:
        """The replicas at these endpoints; those that nobody knows are passed over."""
        found = 0
        for name in names:
            found |= self._bits.get(name, 0)
        return found
