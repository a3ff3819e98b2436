"""Prefill and decode apart, in virtual time: which request, and how its blocks get across."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from loadgen.engine import Engine, Link, Request, transfer_for
from router.disaggregation.choice import TransferSpeed, cheapest, choose
from router.scheduling.placer import Placement

CHOSEN = "chosen"
ALWAYS = "always"
BOTH = "both"
DECIDER = "decider"
DECIDER_TOKENS = 512.0
"""Tokens that the replica which answers lacks, from which the decider has another one prefill. An
operator's own choice in llm-d, where it is 0 unless set, which means never."""


class Apart:
    """Which replicas prefill for others, and for which requests.

    The choice is the gateway's own. "both": those that prefill for others answer clients as well.
    "always" takes the same prefill replica, but asks no price. "decider" does so for the requests
    that llm-d would split: those of whose prompt the replica that answers lacks `DECIDER_TOKENS` or
    more (prefix-based-pd-decider with ``nonCachedTokens``, of llm-d-inference-scheduler).
    """

    def __init__(self, which: str, engines: int, prefill: int, routers: int) -> None:
        """prefill: how many of the engines, the last ones, prefill for the others."""
        if which not in ("", CHOSEN, ALWAYS, BOTH, DECIDER):
            names = f"{CHOSEN}, {ALWAYS}, {DECIDER} or {BOTH}"
            raise ValueError(f"apart must be {names}, not {which!r}")
        self._which = which
        count = prefill if which else 0
        self.prefilling = ((1 << count) - 1) << (engines - count)
        """A mask."""
        self.answering = (1 << engines) - 1
        """A mask of those that answer clients."""
        if which != BOTH:
            self.answering &= ~self.prefilling
        self._speeds = [TransferSpeed() for _ in range(routers)]
        self.handed_over = 0
        """Requests that another replica prefilled."""

    def choose(self, router: int, placement: Placement, now: float) -> int:
        """The slot of the replica that prefills it; -1: where it was placed."""
        prefilling = self.prefilling & ~(1 << placement.slot)
        if not prefilling:
            return -1
        if self._which == DECIDER and placement.uncached < DECIDER_TOKENS:
            return -1
        index = placement.placer.index
        if self._which in (ALWAYS, DECIDER):
            slot = cheapest(placement, prefilling, self.answering, index, now)[0]
        else:
            lacks, speed = placement.uncached, self._speeds[router]
            slot = choose(placement, lacks, prefilling, self.answering, index, speed, now).slot
        self.handed_over += slot >= 0
        return slot

    def saw(self, router: int, tokens: float, seconds: float) -> None:
        """A first token came so long after a replica was told where these tokens are."""
        self._speeds[router].saw(tokens, seconds)


class FirstLeg(msgspec.Struct, eq=False):
    """A request's prefill on another engine."""

    placement: Placement
    request: Request
    lacks: float
    """Tokens that the replica that answers lacks."""
    handed_at: float = 0.0


class Fetches:
    """Moves blocks between the engines. `later` schedules a call; `changed` is told of an engine
    that was given something to do."""

    def __init__(
        self,
        engines: Sequence[Engine],
        later: Callable[[float, Callable[[float], None]], None],
        changed: Callable[[int], None],
    ) -> None:
        self._engines = engines
        self._transfers = [transfer_for(engine.params) for engine in engines]
        self._links = [Link() for _ in engines]
        self._later = later
        self._changed = changed

    def begin(self, slot: int, now: float) -> None:
        """Fetch what an engine has blocks for."""
        engine, transfer = self._engines[slot], self._transfers[slot]
        for request in engine.to_fetch:
            seconds = transfer.seconds(request.fetched_tokens + 1)
            at = self._links[slot].take(seconds, now)
            self._later(at, self._arrival(slot, request))
        engine.to_fetch.clear()

    def _arrival(self, slot: int, request: Request) -> Callable[[float], None]:
        def arrived(now: float) -> None:
            leg: FirstLeg = request.tag.leg
            source = leg.placement.slot
            self._engines[source].free(leg.request, now)
            self._changed(source)
            self._engines[slot].fetched(request, now)
            self._changed(slot)

        return arrived
