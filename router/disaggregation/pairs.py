"""Which decode replica cannot fetch from which prefill replica.

A transfer that fails costs a request seconds, so that a pair is left alone after its first failure:
for a time that doubles with each further one, until a transfer succeeds or one of them restarts.
"""

from __future__ import annotations

from typing import Final

import msgspec

FIRST_SECONDS: Final = 15.0
LONGEST_SECONDS: Final = 240.0


class _Shunned(msgspec.Struct, gc=False):
    until: float
    seconds: float


class Pairs:
    """Of prefill and decode slots; times are monotonic seconds."""

    def __init__(self) -> None:
        self._shunned: dict[tuple[int, int], _Shunned] = {}
        """By (prefill, decode)."""

    def failed(self, prefill: int, decode: int, now: float) -> None:
        """A decode replica could not fetch. Requests that were under way together count once."""
        found = self._shunned.get((prefill, decode))
        if found is None:
            self._shunned[prefill, decode] = _Shunned(now + FIRST_SECONDS, FIRST_SECONDS)
        elif found.until <= now:
            found.seconds = min(2 * found.seconds, LONGEST_SECONDS)
            found.until = now + found.seconds

    def worked(self, prefill: int, decode: int) -> None:
        """It could."""
        if self._shunned:
            self._shunned.pop((prefill, decode), None)

    def shunned(self, decode: int, now: float) -> int:
        """Mask of the prefill replicas that a decode replica is not to fetch from now."""
        mask = 0
        for (prefill, of), found in self._shunned.items():
            if of == decode and found.until > now:
                mask |= 1 << prefill
        return mask

    def forget(self, slot: int) -> None:
        """A replica has restarted, or another one has its slot."""
        for pair in [pair for pair in self._shunned if slot in pair]:
            del self._shunned[pair]
