"""Who wants to know when the fleet changes."""

from __future__ import annotations

from router.fleet.replica import Replica


class FleetListener:
    """Told of changes, synchronously. Override what is of interest."""

    def on_added(self, replica: Replica) -> None:
        """It is in the fleet, with an empty cache of replica.remembered_tokens. A further rank of
        one that is here may be usable already."""

    def on_removed(self, replica: Replica) -> None:
        """It left; its slot will be given to another."""

    def on_emptied(self, replica: Replica) -> None:
        """It restarted: its KV cache is empty."""

    def on_resized(self, replica: Replica) -> None:
        """kv_tokens or offload_tokens turned out to be others."""
