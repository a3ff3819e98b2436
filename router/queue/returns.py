"""Whether a pausing session comes back, learned from those that have paused.

Two estimates, both of counts that forget:

- `Returns`: of the sessions that have been idle for so long, how many come back before the horizon
  (Kaplan-Meier, so that those still pausing count too).
- `Beginnings`: of the first requests that begin like this one, how many are followed by another of
  the same session.
"""

from __future__ import annotations

from math import inf

BINS = 12
EDGES = (*(0.5 * 2**b for b in range(BINS - 1)), inf)
"""Where the bins of idle time end: 0.5, 1, 2, ... 512 s, and never."""
STARTS = (0.0, *EDGES[:-1])
FORGOTTEN_S = EDGES[BINS - 2]
"""A session that has been idle for so long is over."""
HALVE_AT = 200.0
"""Pauses counted in a bin before all of its counts are halved."""
PRIOR_PAUSES = 4.0
PRIOR_RETURN = 0.1
PRIOR_RETURN_AGAIN = 0.4
"""Before anything is known, the share of pauses that end in a bin; the second for sessions that
have come back before, in bins of up to PRIOR_AGAIN_S."""
PRIOR_AGAIN_S = 8.0

MOST_PREFIXES = 4096
PREFIX_MEMORY = 64.0
ALL_MEMORY = 1024.0
"""First requests counted of one prefix, and of all, before the counts are halved."""
PRIOR_FIRST = 4.0
"""First requests that what is usual counts for, beside those of the prefix itself."""


class Returns:
    """How likely sessions of one kind come back, by how long they have been idle.

    `weights[b]`: the chance that one in bin b returns before the horizon, where keeping its cache
    pays; else 0. The horizon is the time to compute as much as the whole cache of a replica.
    """

    __slots__ = ("passed", "returned", "weights")

    def __init__(self, *, came_back_before: bool) -> None:
        likely = PRIOR_RETURN_AGAIN if came_back_before else PRIOR_RETURN
        shares = [likely if edge <= PRIOR_AGAIN_S else PRIOR_RETURN for edge in EDGES]
        self.returned = [PRIOR_PAUSES * share for share in shares]
        """By bin: pauses that ended in it."""
        self.passed = [PRIOR_PAUSES * (1.0 - share) for share in shares]
        """By bin: pauses that went on beyond it."""
        self.weights = [0.0] * BINS

    def update(self, horizon: float) -> None:
        """Make the weights anew from the counts."""
        stays = 1.0
        weights = [0.0] * BINS
        for b in reversed(range(BINS)):
            start, end = STARTS[b], EDGES[b]
            if start >= horizon:
                continue
            returned, passed = self.returned[b], self.passed[b]
            part = 1.0 if end <= horizon else (horizon - start) / (end - start)
            stays *= (passed / (returned + passed)) ** part
            weights[b] = 1.0 - stays
            if returned + passed > HALVE_AT:
                self.returned[b] *= 0.5
                self.passed[b] *= 0.5
        self.weights = [
            weight if weight and self._pays(b, horizon) >= 1.0 else 0.0
            for b, weight in enumerate(weights)
        ]

    def _pays(self, b: int, horizon: float) -> float:
        """What keeping the cache of a session in this bin saves, for what it costs, given up at
        the best time. Saved: the chance that it returns by then, times the horizon. Cost: the time
        that it is kept for. Below 1, the memory does more for other requests."""
        best = kept = 0.0
        stays = 1.0
        for each in range(b, BINS - 1):
            part = self.returned[each] / (self.returned[each] + self.passed[each])
            kept += stays * (1.0 - part / 2.0) * (EDGES[each] - STARTS[each])
            stays *= 1.0 - part
            best = max(best, (1.0 - stays) * horizon / kept)
        return best


class Beginnings:
    """How often requests that begin with some prefix, an application's tools and system prompt, are
    the first of several."""

    __slots__ = ("_all", "_seen")

    def __init__(self) -> None:
        self._seen: dict[int, list[float]] = {}
        """Prefix -> [first requests, those that were followed by another]."""
        self._all = [8.0, 0.8]

    def share(self, prefix: int) -> float:
        """Of those that begin like this, the share that goes on."""
        began, went_on = self._seen.get(prefix, (0.0, 0.0))
        usual = self._all[1] / self._all[0]
        return (went_on + PRIOR_FIRST * usual) / (began + PRIOR_FIRST)

    def began(self, prefix: int) -> None:
        """The first request of a session has ended."""
        self._count(prefix, 0)

    def went_on(self, prefix: int) -> None:
        """The second request of a session has come."""
        self._count(prefix, 1)

    def _count(self, prefix: int, which: int) -> None:
        seen, usual = self._seen, self._all
        seen[prefix] = counts = seen.pop(prefix, None) or [0.0, 0.0]
        counts[which] += 1.0
        usual[which] += 1.0
        if counts[0] > PREFIX_MEMORY:
            counts[:] = counts[0] * 0.5, counts[1] * 0.5
        if usual[0] > ALL_MEMORY:
            usual[:] = usual[0] * 0.5, usual[1] * 0.5
        if len(seen) > MOST_PREFIXES:
            del seen[next(iter(seen))]
