"""What each tenant used, counted for the metrics, under a bounded number of names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

OTHER: Final = "other"
MAX_NAMED: Final = 100
"""Tenants that have a label of their own: those that use most."""
MAX_KNOWN: Final = 10_000
_KEEP: Final = 0.5
"""Of what a tenant used before, what counts for its name at the next look."""
_MUCH_MORE: Final = 2.0
"""Who takes another's name uses so many times as much: names must not change to and fro."""
_STEP: Final = 4
"""Of a chain's blocks, every so many is remembered: it costs a look-up each."""
_SEVERAL: Final = -1


class Use(msgspec.Struct):
    """The counters of one label."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    isolated_tokens: int = 0
    """Prompt tokens that another tenant's cache would have saved."""
    refused: dict[str, int] = {}
    """Name of a limit, or of another reason -> requests refused."""


class TenantUse:
    """Counts by tenant. Those that use most are named; the rest is `other`.

    The mutable state: counters of those named, and how much everyone used lately. A tenant that
    gets a name begins there at 0, as a counter of a new process does.
    """

    def __init__(self) -> None:
        self.named: dict[str, Use] = {}
        self.other = Use()
        self._lately: dict[str, float] = {}

    def of(self, tenant: str) -> Use:
        """Where this tenant's use is counted."""
        use = self.named.get(tenant)
        if use is None:
            # One that is called so must not have that label a second time.
            if len(self.named) >= MAX_NAMED or tenant == OTHER:
                return self.other
            use = self.named[tenant] = Use()
        return use

    def saw(self, tenant: str, tokens: int) -> Use:
        """A request used so many tokens; its counters."""
        lately = self._lately
        if tenant == OTHER:
            return self.other
        if tenant in lately or len(lately) < MAX_KNOWN:
            lately[tenant] = lately.get(tenant, 0.0) + tokens + 1
        return self.of(tenant)

    def look(self) -> None:
        """See who uses most now. Called at each scrape."""
        lately = self._lately
        for tenant in list(lately):
            lately[tenant] *= _KEEP
            if lately[tenant] < 1.0:
                del lately[tenant]
        waiting = sorted(lately.keys() - self.named.keys(), key=lately.__getitem__, reverse=True)
        named = sorted(self.named, key=lambda tenant: lately.get(tenant, 0.0))
        for least, most in zip(named, waiting, strict=False):
            if len(self.named) < MAX_NAMED or lately[most] <= _MUCH_MORE * lately.get(least, 0.0):
                break
            del self.named[least]
            self.named[most] = Use()

    def rows(self) -> list[tuple[str, Use]]:
        """Every label with its counters."""
        rows = list(self.named.items())
        return [*rows, (OTHER, self.other)] if self.other != Use() else rows


class IsolationCost:
    """What other tenants' caches would have held of a prompt, were they shared.

    The mutable state: for the block hashes seen lately, without salts, whose they were.
    """

    def __init__(self, most: int) -> None:
        """most: hashes that are remembered, in two generations."""
        self._half = most // 2
        self._new: dict[int, int] = {}
        self._old: dict[int, int] = {}

    def saw(self, chain: Sequence[int], tenant: int) -> int:
        """A prompt of a tenant. How many of its blocks, from the first on, others have had, to
        within `_STEP` of them."""
        new, old = self._new, self._old
        shared = 0
        for depth in range(_STEP - 1, len(chain), _STEP):
            block = chain[depth]
            owner = new.get(block)
            if owner is None:
                owner = old.get(block)
            if owner is None or owner == tenant:
                new[block] = tenant
            else:
                shared = depth + 1
                new[block] = _SEVERAL
        if len(new) > self._half:
            self._old, self._new = new, {}
        return shared
