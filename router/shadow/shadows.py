"""The shadow policies of a router: what they are told, when they work, what they have found.

They are told of a request with two entries in a list. All their own work is done later, in slices
of a millisecond with pauses between them, so that they take at most a fifth of a core and hold up
no request for longer. What comes faster than that is left out and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from time import monotonic, perf_counter
from typing import Final, Protocol

import msgspec

from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.policies import load_policy
from router.scheduling.placer import Placement, Placer, index_weight
from router.shadow.shadow_policy import Placed, ShadowPolicy, as_shadow
from router.shadow.tally import Tally
from router.types import Policy

SLICE_S: Final = 0.001
"""Seconds that shadows work at a time."""
PAUSE_S: Final = 0.004
"""Seconds between two slices while there is more to do."""
GATHER_S: Final = 0.05
"""Seconds from the first entry of a list to the work on it."""
MAX_BACKLOG: Final = 20_000
"""Entries that may wait. Beyond them new requests are left out."""
SPEEDS_EVERY_S: Final = 1.0
"""Seconds after which the replicas' learned speeds are taken over again."""
TRUSTED_POINTS: Final = 2.0
"""Points of hit rate by which the live policy's own shadow may differ from what was delivered."""
MIN_REQUESTS: Final = 100
"""Requests of the last hour below which nothing is said of trust."""


class Member(Protocol):
    """A replica, as far as shadows need it."""

    @property
    def block_tokens(self) -> int: ...


class Members(Protocol):
    """The fleet, as far as shadows need it."""

    @property
    def replicas(self) -> Sequence[Member | None]:
        """By slot."""
        ...

    def members(self) -> Sequence[Member]:
        """Those that are there."""
        ...


def _on_this_loop(delay: float, call: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(delay, call)


class _Event(Enum):
    PLACED = "placed"
    FINISHED = "finished"
    FAILED = "failed"


class Saved(msgspec.Struct, frozen=True):
    """What was not computed because of the caches, or because of the routing."""

    tokens: int
    replica_seconds: float
    """Seconds of one replica's prefill."""
    money: float | None
    """By `replica_hour_price`; None where that is not set."""


class ShadowRow(msgspec.Struct, frozen=True):
    """One shadow policy since the start, for metrics. Implements ``telemetry.sources.ShadowRow``"""

    policy: str
    requests: int
    prompt: int
    predicted: int
    delivered: int
    wait: float
    hottest: float | None


class ShadowReport(msgspec.Struct, frozen=True):
    """One shadow policy over the last hour. Shares are None before the first request."""

    policy: str
    live: bool
    """Whether this is the shadow of the policy in use, by which the others are judged."""
    requests: int
    predicted_hit_rate: float | None
    delivered_hit_rate: float | None
    """What the engines reported for the same requests."""
    hottest_ratio: float | None
    """Uncached tokens of the busiest replica, in units of the even share."""
    wait_seconds: float | None
    """Mean seconds until a prompt's prefill would have been done."""
    saved: Saved
    """What the policy in use has saved against this one; negative where this one saves more."""
    fault: str


class ShadowsReport(msgspec.Struct, frozen=True):
    """The answer of /shadows."""

    trusted: bool
    why: str
    """Why the shadows cannot be trusted, or not yet; empty when they can."""
    left_out: int
    """Requests since the start that the shadows were not told of."""
    by_cache: Saved
    """What all reuse has saved, whatever the policy."""
    policies: list[ShadowReport]


class Shadows(FleetListener):
    """Implements ``PlacementListener`` for the live placer. Use it on the event loop only."""

    def __init__(
        self,
        fleet: Members,
        live: Placer,
        live_name: str,
        names: Sequence[str],
        *,
        price: float = 0.0,
        clock: Callable[[], float] = monotonic,
        later: Callable[[float, Callable[[], None]], object] = _on_this_loop,
    ) -> None:
        """live: the placer in use, and the name of its policy. names: of the others. price: of a
        replica's hour; 0 for none. later: has something called after so many seconds. Raises
        router.policies.PolicyError."""
        self._fleet = fleet
        self._live = live
        self._price = price
        self._clock = clock
        self._later = later
        self.control = ShadowPolicy(live_name, load_policy(live_name), live.models)
        """The shadow of the policy in use."""
        self.all: list[ShadowPolicy] = [
            self.control,
            *(
                ShadowPolicy(name, load_policy(name), live.models)
                for name in dict.fromkeys(names)
                if name != live_name
            ),
        ]
        self.left_out = 0
        self._backlog: deque[tuple[_Event, Placement, float]] = deque()
        self._placed: dict[int, list[Placed | None]] = {}
        self._speeds_at = float("-inf")
        self._waits = False
        """The next slice of work is arranged for."""
        self._cached_tokens = 0
        self._cached_seconds = 0.0

    @property
    def policies(self) -> list[Policy]:
        """The policies themselves, to be told of the fleet's members."""
        return [shadow.policy for shadow in self.all]

    # -- what the live placer tells

    def routed(self, placement: Placement) -> None:
        if len(self._backlog) >= MAX_BACKLOG:
            self.left_out += 1
            return
        self._add(_Event.PLACED, placement)

    def first_token(self, placement: Placement) -> None:
        """It is the live replica's: a shadow has its own."""

    def finished(self, placement: Placement) -> None:
        self._add(_Event.FINISHED, placement)

    def failed(self, placement: Placement) -> None:
        self._add(_Event.FAILED, placement)

    def _add(self, event: _Event, placement: Placement) -> None:
        self._backlog.append((event, placement, self._clock()))
        if not self._waits:
            self._waits = True
            self._later(GATHER_S, self._work)

    # -- the work

    def _work(self) -> None:
        until = perf_counter() + SLICE_S
        backlog = self._backlog
        while backlog and perf_counter() < until:
            self._take(*backlog.popleft())
        self._waits = bool(backlog)
        if backlog:
            self._later(PAUSE_S, self._work)

    def _take(self, event: _Event, live: Placement, now: float) -> None:
        if event is _Event.PLACED:
            if now - self._speeds_at >= SPEEDS_EVERY_S:
                self._speeds_at = now
                for shadow in self.all:
                    shadow.take_speeds(self._live.loads)
            prompt = as_shadow(live.prompt)
            self._placed[id(live)] = [
                shadow.place(prompt, live.eligible, live.sent_at) for shadow in self.all
            ]
            return
        placed = self._placed.pop(id(live), None)
        if placed is None:  # it was left out
            return
        prompt_tokens, cached = live.reported_prompt, live.reported_cached
        failed = event is _Event.FAILED
        if not failed and prompt_tokens > 0 and cached > 0:
            self._cached_tokens += cached
            self._cached_seconds += cached / live.load.prefill_rate
        for shadow, one in zip(self.all, placed, strict=True):
            if one is None:
                continue
            if failed:
                one.placement.failed(now)
                continue
            replica = self._fleet.replicas[one.placement.slot]
            block = replica.block_tokens if replica is not None else 1
            shadow.ended(one, now, live, block)

    # -- the fleet changes

    def on_added(self, replica: Replica) -> None:
        """A replica came."""
        for shadow in self.all:
            shadow.add_replica(replica.slot, index_weight(replica.remembered_tokens))

    def on_removed(self, replica: Replica) -> None:
        """A replica left."""
        for shadow in self.all:
            shadow.remove_replica(replica.slot)

    def on_emptied(self, replica: Replica) -> None:
        """A replica restarted."""
        for shadow in self.all:
            shadow.forget(replica.slot)

    def on_resized(self, replica: Replica) -> None:
        """A replica's cache has another size."""
        for shadow in self.all:
            shadow.resize(replica.slot, index_weight(replica.remembered_tokens))

    # -- what was found

    def trust(self) -> tuple[bool, str]:
        """(whether the shadows can be trusted, why not)."""
        hour = self.control.rolling.last_hour(self._clock())
        if self.control.fault:
            return False, f"the shadow of {self.control.name} failed: {self.control.fault}"
        if hour.requests < MIN_REQUESTS:
            return False, (
                f"{hour.requests} of {MIN_REQUESTS} requests with reported tokens in the last hour"
            )
        points = 100.0 * (hour.predicted - hour.delivered) / hour.prompt
        if abs(points) > TRUSTED_POINTS:
            return False, (
                f"the shadow of {self.control.name} has a hit rate {points:+.1f} points from what "
                f"was delivered; up to {TRUSTED_POINTS:g} are expected"
            )
        return True, ""

    def report(self) -> ShadowsReport:
        """What was found over the last hour."""
        now = self._clock()
        trusted, why = self.trust()
        replicas = len(self._fleet.members())
        return ShadowsReport(
            trusted,
            why,
            self.left_out,
            self.saved_by_cache(),
            [self._report(shadow, shadow.rolling.last_hour(now), replicas) for shadow in self.all],
        )

    @property
    def trusted(self) -> bool:
        return self.trust()[0]

    @property
    def saved_tokens(self) -> int:
        return self._cached_tokens

    @property
    def saved_seconds(self) -> float:
        return self._cached_seconds

    def rows(self) -> Sequence[ShadowRow]:
        """The sums since the start, for metrics."""
        now, replicas = self._clock(), len(self._fleet.members())
        return [
            ShadowRow(
                shadow.name,
                total.requests,
                total.prompt,
                int(total.predicted),
                total.delivered,
                total.wait,
                shadow.rolling.last_hour(now).hottest(replicas),
            )
            for shadow in self.all
            for total in (shadow.rolling.total,)
        ]

    def saved_by_cache(self) -> Saved:
        """What reuse has saved since the start."""
        return self._saved(self._cached_tokens, self._cached_seconds)

    def _report(self, shadow: ShadowPolicy, hour: Tally, replicas: int) -> ShadowReport:
        some = hour.prompt > 0
        return ShadowReport(
            shadow.name,
            shadow is self.control,
            hour.requests,
            hour.predicted / hour.prompt if some else None,
            hour.delivered / hour.prompt if some else None,
            hour.hottest(replicas),
            hour.wait / hour.requests if hour.requests else None,
            self._saved(round(hour.delivered - hour.predicted), hour.saved),
            shadow.fault,
        )

    def _saved(self, tokens: int, seconds: float) -> Saved:
        return Saved(tokens, seconds, seconds / 3600.0 * self._price if self._price else None)
