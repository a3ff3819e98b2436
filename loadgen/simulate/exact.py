"""An index that looks into the simulated engines: what KV events would tell, without their
delay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadgen.engine import Engine
from router.scheduling.tier_prices import CPU
from router.types import CacheRoom, Chain, TierShare, slots


class EngineRoom:
    """How full one engine's KV cache was at the last look, in the index's weight.

    Implements ``router.types.CacheRoom``.
    """

    def __init__(self, engines: Sequence[Engine], slot: int, scale: int) -> None:
        self._engines = engines
        self._slot = slot
        params = engines[slot].params
        self._block = params.block_size * scale
        self.capacity = params.cache_tokens * scale
        self.used = 0

    def look(self) -> None:
        """Read the engine: blocks with content."""
        self.used = len(self._engines[self._slot].pool.cached) * self._block


class ExactIndex:
    """Implements ``router.types.PrefixIndex`` for chains of the engine's own block hashes.

    A request on its way counts as held, from its first ``record`` to the one at its end.
    """

    def __init__(
        self, engines: Sequence[Engine], bytes_per_token: int, *, tiers: bool = True
    ) -> None:
        """tiers: what lies in tiers behind GPU memory counts as held too."""
        self._engines = engines
        self._weight = engines[0].params.block_size * bytes_per_token
        self.spans = range(0, 1 << 40, self._weight)
        self._rooms = [EngineRoom(engines, slot, bytes_per_token) for slot in range(len(engines))]
        self._tiers = tiers
        self._coming: list[dict[int, int]] = [{} for _ in engines]
        self._under_way: set[int] = set()

    def add_replica(self, slot: int, capacity: int) -> None:
        """The engines are there already."""

    def resize(self, slot: int, capacity: int) -> None:
        """Their size is their own."""

    def forget(self, slot: int) -> None:
        """They forget by themselves."""

    def remove_replica(self, slot: int) -> None:
        """The fleet is fixed."""

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        """(leading weight held, mask of holders), deepest first."""
        groups: dict[int, int] = {}
        for slot, engine in enumerate(self._engines):
            cached, coming = engine.pool.cached, self._coming[slot]
            tier = engine.tier.blocks if self._tiers and engine.tier is not None else ()
            depth = 0
            for key in chain:
                if key not in cached and key not in coming and key not in tier:
                    break
                depth += 1
            if depth:
                groups[depth] = groups.get(depth, 0) | 1 << slot
        return [(depth * self._weight, groups[depth]) for depth in sorted(groups, reverse=True)]

    def record(self, slot: int, chain: Chain, now: float) -> CacheRoom:  # noqa: ARG002
        """Routed there, the first time; ended, the second time (of the same chain object)."""
        coming = self._coming[slot]
        if id(chain) in self._under_way:
            self._under_way.remove(id(chain))
            for key in chain:
                left = coming[key] - 1
                if left:
                    coming[key] = left
                else:
                    del coming[key]
        else:
            self._under_way.add(id(chain))
            for key in chain:
                coming[key] = coming.get(key, 0) + 1
        return self.room(slot)

    @property
    def mask(self) -> int:
        """The replicas with a tier."""
        return sum(
            1 << slot for slot, engine in enumerate(self._engines) if engine.tier is not None
        )

    def behind(
        self,
        chain: Chain,
        found: Sequence[tuple[int, int]],
        scale: float,
    ) -> Mapping[int, TierShare]:
        """By slot, what of the chain lies in tiers."""
        shares: dict[int, TierShare] = {}
        block = self._weight * scale
        for weight, mask in found:
            for slot in slots(mask):
                cached, coming = self._engines[slot].pool.cached, self._coming[slot]
                keys = chain[: weight // self._weight]
                loaded = sum(key not in cached and key not in coming for key in keys)
                if loaded:
                    shares[slot] = TierShare(weight * scale, {CPU: loaded * block})
        return shares

    def room(self, slot: int) -> CacheRoom:
        """The engine's cache as it is now."""
        room = self._rooms[slot]
        room.look()
        return room


class ExactTiers:
    """Implements ``TierModel`` with what the engines really have in their tiers."""

    def __init__(self, index: ExactIndex) -> None:
        self.mask = index.mask
        self.behind = index.behind

    def reach(self, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Each engine has a tier of its own."""
        return found

    def record(self, slot: int, chain: Chain, now: float) -> None:
        """The engines know by themselves."""

    def forget(self, slot: int) -> None:
        """They forget by themselves."""
