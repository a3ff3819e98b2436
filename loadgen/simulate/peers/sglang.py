"""SGLang router's cache_aware, our reading of its documents.

Source: docs/router/router.md in sgl-project/sglang (cache_threshold 0.5, balance_abs_threshold 32,
balance_rel_threshold 1.0001; sections "Cache-Aware Routing" and "Load-Balancing").
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from router.types import Choice, Load, RoutingRequest, slots


class SglangCacheAware:
    """Shortest queue while the load is out of balance by both thresholds; else the highest match,
    if it is over the cache threshold; else the smallest tree."""

    def __init__(
        self,
        *,
        cache_threshold: float = 0.5,
        balance_abs_threshold: int = 32,
        balance_rel_threshold: float = 1.0001,
        seed: int = 0,
    ) -> None:
        self._cache = cache_threshold
        self._abs = balance_abs_threshold
        self._rel = balance_rel_threshold
        self._random = random.Random(seed)

    def members(self, names: Mapping[int, str]) -> None:
        """Does nothing: the choice needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """The reason is `least`, `cached` or `no_holder`."""
        fleet = slots(ask.eligible)
        running = [loads[slot].in_flight for slot in fleet]
        low, high = min(running), max(running)
        if high - low > self._abs and high > self._rel * low:
            return Choice(fleet[running.index(low)], "least")
        if ask.held:
            depth, mask = ask.held[0]
            holders = slots(mask & ask.eligible)
            if holders and depth / ask.tokens > self._cache:
                return Choice(self._random.choice(holders), "cached")
        smallest = min(fleet, key=lambda slot: (loads[slot].cache_used, self._random.random()))
        return Choice(smallest, "no_holder")
