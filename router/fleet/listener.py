"""The interface of those that follow changes of the fleet."""

from __future__ import annotations

from router.fleet.replica import Replica


class FleetListener:
    """Told of changes, synchronously. Override what is of interest."""

    def on_added(self, replica: Replica) -> None:
        """It is in the fleet, with an empty cache of replica.remembered_tokens. A further rank of
        one that is here may be usable already."""

    def on_removed(self, replica: Replica) -> None:
        """The replica left. Its slot will be given to another one."""

    def on_emptied(self, replica: Replica) -> None:
        """The replica restarted: its KV cache is empty."""

    def on_role(self, replica: Replica) -> None:
        """The replica's role is another one."""

    def on_adapters(self, replica: Replica) -> None:
        """Its models, or what its metrics say of LoRA adapters, were read."""

    def on_resized(self, replica: Replica) -> None:
        """The replica's kv_tokens or offload_tokens changed."""
