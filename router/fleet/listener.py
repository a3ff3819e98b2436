"""Who wants to know when the fleet changes."""

from __future__ import annotations

from router.fleet.replica import Replica


class FleetListener:
    """Told of changes, synchronously. Override what is of interest."""

    def on_added(self, replica: Replica) -> None:
        """It is in the fleet, with an empty cache of replica.kv_tokens, and not usable yet."""

    def on_removed(self, replica: Replica) -> None:
        """It left; its slot will be given to another."""

    def on_emptied(self, replica: Replica) -> None:
        """It restarted: its KV cache is empty."""

    def on_resized(self, replica: Replica, tokens: int) -> None:
        """Its KV cache turned out to have room for so many tokens."""
