"""Which replicas answer clients, and which prefill prompts for them."""

from __future__ import annotations

from router.fleet.replica import Replica
from router.types import Role


class Roles:
    """Slot masks by role. Changed by the fleet, on the event loop."""

    __slots__ = ("prefill_only", "prefilling")

    def __init__(self) -> None:
        self.prefilling = 0
        """Of the replicas that prefill for others."""
        self.prefill_only = 0
        """Those of them that answer no client."""

    def set(self, replica: Replica, role: Role) -> None:
        """It has this role from now on."""
        self.drop(replica)
        replica.role = role
        if role != "decode":
            self.prefilling |= replica.bit
        if role == "prefill":
            self.prefill_only |= replica.bit

    def drop(self, replica: Replica) -> None:
        """It leaves: its slot will be another's."""
        self.prefilling &= ~replica.bit
        self.prefill_only &= ~replica.bit
