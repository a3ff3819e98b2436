"""Which part of what the index has of a replica is in GPU memory, and which in a tier behind it.

The index of bytes is as large as both together. For replicas with a tier, a second LRU as large as
GPU memory alone is kept here: what it has is there, and what only the index has is in the tier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.index import ByteIndex
from router.scheduling.tier_prices import medium_untold
from router.types import NOTHING_BEHIND, Chain, TierShare, slots


class TierModel(Protocol):
    """What of a prompt lies in tiers, for replicas whose engines do not tell."""

    mask: int
    """The replicas that have a tier."""

    def reach(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """What the index has of a chain, deepest first, with what replicas reach of each other's
        tiers."""
        ...

    def behind(
        self, chain: Chain, found: Sequence[tuple[int, int]], scale: float
    ) -> Mapping[int, TierShare]:
        """By slot, what lies in tiers. found: what the index has of the chain, in its weight;
        scale: tokens of a unit of it."""
        ...

    def record(self, slot: int, chain: Chain, now: float) -> object:
        """A replica of `mask` has, or will have, the whole chain in GPU memory."""
        ...

    def forget(self, slot: int) -> None:
        """A replica's cache is empty."""
        ...


class DeviceModel:
    """Implements `TierModel` for the index of bytes.

    The mutable state is `mask` and an index of the replicas in it.
    """

    def __init__(self, spans: Sequence[int], shared: Sequence[str] = ()) -> None:
        """shared: media that all replicas reach. With any, what one replica's tier has, all
        have."""
        self.mask = 0
        self._device = ByteIndex(spans)
        self._shared = bool(shared)
        self._medium = medium_untold(shared)
        self.record = self._device.record

    def resize(self, slot: int, weight: int, *, tier: bool) -> None:
        """GPU memory of a replica has room for this weight; whether a tier is behind it."""
        bit = 1 << slot
        if not tier:
            self.remove(slot)
        elif self.mask & bit:
            self._device.resize(slot, weight)
        else:
            self._device.add_replica(slot, weight)
            self.mask |= bit

    def forget(self, slot: int) -> None:
        """Its cache is empty."""
        if self.mask >> slot & 1:
            self._device.forget(slot)

    def outlives(self, slot: int) -> bool:
        """Whether what lies behind a replica is there when its engine has ended: a store that
        others use as well is."""
        return self._shared and bool(self.mask >> slot & 1)

    def remove(self, slot: int) -> None:
        """It left, or has no tier any more."""
        if self.mask >> slot & 1:
            self._device.remove_replica(slot)
            self.mask &= ~(1 << slot)

    def reach(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """See `TierModel`."""
        if not self._shared or not found:
            return found
        (deepest, mask), *others = found
        tiered = self.mask
        rest = [(weight, left) for weight, each in others if (left := each & ~tiered)]
        return [(deepest, mask | tiered), *rest]

    def behind(
        self, chain: Chain, found: Sequence[tuple[int, int]], scale: float
    ) -> Mapping[int, TierShare]:
        """See `TierModel`."""
        left = self.mask
        if not found or not left:
            return NOTHING_BEHIND
        device = {
            slot: weight for weight, mask in self._device.match(chain) for slot in slots(mask)
        }
        shares: dict[int, TierShare] = {}
        for weight, mask in found:
            mask &= left
            for slot in slots(mask):
                tier = weight - device.get(slot, 0)
                if tier > 0:
                    shares[slot] = TierShare(weight * scale, {self._medium: tier * scale})
        return shares
