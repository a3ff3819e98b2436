"""An index that looks into the simulated engines: what KV events would tell, without their
delay."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.engine import Engine
from router.types import CacheRoom, Chain


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

    def __init__(self, engines: Sequence[Engine], bytes_per_token: int) -> None:
        self._engines = engines
        self._weight = engines[0].params.block_size * bytes_per_token
        self.spans = range(0, 1 << 40, self._weight)
        self._rooms = [EngineRoom(engines, slot, bytes_per_token) for slot in range(len(engines))]
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
            depth = 0
            for key in chain:
                if key not in cached and key not in coming:
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

    def room(self, slot: int) -> CacheRoom:
        """The engine's cache as it is now."""
        room = self._rooms[slot]
        room.look()
        return room
