"""A request that another router has placed."""

from __future__ import annotations

import msgspec

from router.scheduling.prefills import Prefill
from router.types import NO_CHAIN, Chain


class PeerRequest(msgspec.Struct, gc=False):
    """Another router's request, with what the loads here were charged for it."""

    slot: int
    size: int
    """The canonical bytes of the prompt; 1 when unknown."""
    uncached: float
    tokens: float
    chain: Chain = NO_CHAIN
    """An array that begins with the prompt's chain. It may be shared, and may grow."""
    blocks: int = 0
    """The length of the prompt's own chain within `chain`."""
    prefill: Prefill | None = None
    """The blocks that the replica computes for it, until its first token."""
    first: bool = False
    """Whether its router has reported the first token."""

    def own_chain(self) -> Chain:
        """The prompt's chain, cut from `chain`."""
        return self.chain if len(self.chain) == self.blocks else self.chain[: self.blocks]
