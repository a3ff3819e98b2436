"""Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, SODA 2018)."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from router.types import Choice, Load, RoutingRequest, slots

POINTS = 128
"""The number of points that each replica has on the ring."""
BOUND = 1.25
"""No replica takes more than this times the mean of the requests in flight."""
EXACT_UP_TO = 64
"""In larger fleets the mean is refreshed once in `size / EXACT_UP_TO` choices."""


class ConsistentHash:
    """Keys on a ring made of the replicas' names: every router agrees, and few keys move when one
    comes.

    The key is the client's (session header, prompt_cache_key, user), else the prompt's first
    blocks; a prompt too short to have one goes anywhere. A replica over the bound is passed over
    for the next on the ring. Options: `bound` (at least 1), `seed` (for prompts without a key).
    """

    def __init__(self, *, bound: float = BOUND, seed: int | None = None) -> None:
        if bound < 1.0:
            raise ValueError(
                f"bound must be at least 1, not {bound}: no replica could take the mean"
            )
        self._bound = bound
        self._random = random.Random(seed).random
        self._points: list[int] = []
        self._owners: list[int] = []
        self._mean = 0.0
        self._mean_of = 0
        self._fresh = 0

    def members(self, names: Mapping[int, str]) -> None:
        """Rebuild the ring: POINTS pseudo-random points a name (splitmix64 from the name's
        hash)."""
        if not names:
            self._points, self._owners = [], []
            return
        ordered = sorted(names.items(), key=lambda item: item[1])
        seeds = np.array(
            [xxhash.xxh3_64_intdigest(name.encode()) for _, name in ordered], dtype=np.uint64
        )
        steps = np.arange(1, POINTS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        points = (seeds[:, None] + steps[None, :]).ravel()
        points = (points ^ (points >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        points = (points ^ (points >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        points ^= points >> np.uint64(31)
        owners = np.repeat(np.array([slot for slot, _ in ordered]), POINTS)
        order = np.argsort(points, kind="stable")
        self._points = points[order].tolist()
        self._owners = owners[order].tolist()

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Reasons: hash, overflow (the key's own replica is over the bound), only_one."""
        eligible = ask.eligible
        fleet = slots(eligible)
        if len(fleet) == 1:
            return Choice(fleet[0], "only_one")
        if ask.key:
            key = xxhash.xxh3_64_intdigest(ask.key.encode())
        else:
            key = ask.prefix or int(self._random() * 2.0**64)
        bound = self._bound * (self._mean_load(eligible, fleet, loads) + 1.0 / len(fleet))
        owners = self._owners
        size = len(owners)
        at = bisect_right(self._points, key)
        passed = 0
        first = -1
        for step in range(at, at + size):
            slot = owners[step % size]
            bit = 1 << slot
            if passed & bit or not eligible & bit:
                continue
            load = loads[slot]
            if load.in_flight < bound * load.weight:
                return Choice(slot, "hash" if first < 0 else "overflow")
            if first < 0:
                first = slot
            passed |= bit
            if passed == eligible:
                break
        if first < 0:
            raise RuntimeError(
                f"no eligible slot of {fleet} is on the ring: members() was not told of it"
            )
        return Choice(first, "hash")

    def _mean_load(self, eligible: int, fleet: Sequence[int], loads: Sequence[Load]) -> float:
        if self._fresh > 0 and self._mean_of == eligible:
            self._fresh -= 1
            return self._mean
        self._mean = sum([loads[slot].in_flight for slot in fleet]) / len(fleet)
        self._mean_of = eligible
        self._fresh = len(fleet) // EXACT_UP_TO
        return self._mean
