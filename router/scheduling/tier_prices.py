"""What bringing back a token from a tier behind GPU memory costs.

A request waits for it, and for what is loaded before; the engine computes others meanwhile. So it
is a cost of its own, and not tokens to prefill. An engine loads what a tier has whether that is
faster than computing it or not.

The seconds of a token are, from the best known to the least:

- learned for the replica and medium: what first tokens took beyond what computing the rest takes;
- learned on the other replicas: their median;
- measured by the engine: `vllm:kv_offload_load_time_total` over the tokens loaded, for CPU memory;
- set: `kv_tier_rates`;
- assumed: `ASSUMED_WORTH`, a share of what computing takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from router.scheduling.learning import (
    ALIKE_STEPS,
    STEPS_PER_DOUBLING,
    WARM_UP_SAMPLES,
)
from router.types import Load, TierPart, TierShare

CPU = "CPU"
"""The medium of a tier that no event names, and of which none is set."""
ASSUMED_WORTH = {CPU: 0.9, "STORAGE": 0.6, "DISK": 0.6}
"""What a token on a medium is worth, as a share of computing it, while nothing is known."""
OTHER_WORTH = 0.6
MIN_LOADED_TOKENS = 512.0
"""A load shorter than this says more about overheads than about the tier."""
MAX_TIER_MISS = 0.1
"""Share of the tokens expected to be reused that may be missing, or more than expected, where a
request teaches what a tier costs."""

MAX_TEACHING_SHARE = 0.7
"""Share of the KV cache that running requests may hold while a request teaches what loading costs:
beyond, its time may be a wait for memory."""

LEAST_SECONDS = 1e-7
"""No token takes less: 10 million a second."""
QUARTILE_STEP = 0.1
"""How far one sample moves what was learned."""


def medium_untold(shared: Sequence[str]) -> str:
    """The medium of a tier that no event names. shared: the media that all replicas reach, as
    set."""
    return shared[0] if shared else CPU


class TierPrices:
    """Seconds of a token by medium, for the replicas of one fleet.

    The mutable state is one quartile for each replica and medium that has been seen at work, and
    what is published of them: replicas are taken to be alike unless they are clearly not, as their
    speeds are (see `learning.Speeds`).
    """

    __slots__ = ("_learners", "_loads", "_own", "_set", "_usual")

    def __init__(self, loads: Sequence[Load], rates: Mapping[str, float]) -> None:
        """loads: by slot, shared with the fleet. rates: tokens a second by medium, as set."""
        self._loads = loads
        self._set = {medium: 1.0 / rate for medium, rate in rates.items()}
        self._learners: dict[tuple[int, str], tuple[Load, Quartile]] = {}
        self._own: dict[tuple[int, str], tuple[Load, float]] = {}
        self._usual: dict[str, float] = {}

    def seconds(self, slot: int, medium: str) -> float:
        """What loading one token takes there."""
        load = self._loads[slot]
        measured = load.tier_seconds if medium == CPU else 0.0
        usual = self._usual.get(medium)
        if usual is not None:
            own = self._own.get((slot, medium))
            # The slot may be another replica's by now.
            learned = own[1] if own is not None and own[0] is load else usual
            # No token came sooner than its transfer took.
            return max(measured, learned)
        if measured:
            return measured
        known = self._set.get(medium)
        if known is not None:
            return known
        return (1.0 - ASSUMED_WORTH.get(medium, OTHER_WORTH)) / load.prefill_rate

    def known(self, slot: int, medium: str) -> str:
        """Where `seconds` has it from: learned, measured, set or assumed."""
        if medium in self._usual:
            return "learned"
        if medium == CPU and self._loads[slot].tier_seconds:
            return "measured"
        return "set" if medium in self._set else "assumed"

    def loading(self, slot: int, share: TierShare) -> float:
        """Seconds that loading what lies in a replica's tiers takes, once its turn has come."""
        seconds = 0.0
        for medium, tokens in share.media.items():
            seconds += tokens * self.seconds(slot, medium)
        return seconds

    def parts(self, slot: int, share: TierShare) -> list[TierPart]:
        """What is expected from each tier, and what that takes."""
        return [
            TierPart(
                medium,
                int(tokens),
                round(tokens * self.seconds(slot, medium), 6),
                self.known(slot, medium),
            )
            for medium, tokens in share.media.items()
        ]

    def all_loading(self, behind: Mapping[int, TierShare], now: float) -> dict[int, float]:
        """The same by slot, and what is being loaded before."""
        found = {}
        for slot, share in behind.items():
            waiting = self._loads[slot].loading_until - now
            found[slot] = self.loading(slot, share) + (waiting if waiting > 0.0 else 0.0)
        return found

    def charge(self, slot: int, share: TierShare, tokens: float, now: float) -> bool:
        """A prompt of so many tokens is loaded there in part. Whether it teaches what that takes:
        where nothing else is waited for, no load before it and no room in GPU memory."""
        load = self._loads[slot]
        busy = load.loading_until
        load.loading_until = (busy if busy > now else now) + self.loading(slot, share)
        roomy = load.kv_tokens + tokens <= MAX_TEACHING_SHARE * load.kv_capacity
        return busy <= now and roomy

    def learn(
        self,
        slot: int,
        share: TierShare,
        scale: float,
        cached: int,
        first_seconds: float,
        rest: float | None,
    ) -> None:
        """Learn from a request's first token. It has to have been there: an answer that reports
        less reuse was not loaded, or not all of it.

        scale: tokens of the engine for each that was estimated; cached: tokens that it reported,
        -1 where it did not; rest: seconds that what was computed takes, None while not known.
        """
        expected = share.tokens * scale
        if rest is None or cached < 0 or abs(cached - expected) > MAX_TIER_MISS * expected:
            return
        media = {medium: tokens * scale for medium, tokens in share.media.items()}
        self.saw(slot, media, first_seconds - rest)

    def saw(self, slot: int, media: Mapping[str, float], seconds: float) -> None:
        """A first token took `seconds` longer than computing what was not held takes; these tokens
        were loaded meanwhile."""
        medium = max(media, key=lambda each: media[each] * self.seconds(slot, each))
        tokens = media[medium]
        if tokens < MIN_LOADED_TOKENS:
            return
        for other, count in media.items():
            if other != medium:
                seconds -= count * self.seconds(slot, other)
        load = self._loads[slot]
        known = self._learners.get((slot, medium))
        if known is None or known[0] is not load:
            known = self._learners[slot, medium] = load, Quartile()
        # It cannot have taken nothing: what the rest takes was estimated too high.
        known[1].saw(max(seconds / tokens, LEAST_SECONDS))
        if known[1].samples >= WARM_UP_SAMPLES:
            self._publish(medium)

    def _publish(self, medium: str) -> None:
        loads = self._loads
        known = {
            slot: quartile.value
            for (slot, each), (load, quartile) in self._learners.items()
            if each == medium
            and quartile.samples >= WARM_UP_SAMPLES
            and slot < len(loads)
            and loads[slot] is load
        }
        usual = self._usual[medium] = sorted(known.values())[len(known) // 2]
        alike = ALIKE_STEPS / STEPS_PER_DOUBLING
        for slot, seconds in known.items():
            if abs(math.log2(seconds / usual)) > alike:
                self._own[slot, medium] = loads[slot], seconds
            else:
                self._own.pop((slot, medium), None)


class Quartile:
    """The value below which a quarter of the samples lie, of late.

    What a sample has too much, since its request waited for something else besides, has no weight
    here, unlike in a mean.
    """

    __slots__ = ("_first", "samples", "value")

    def __init__(self) -> None:
        self.samples = 0
        self.value = 0.0
        self._first: list[float] = []

    def saw(self, value: float) -> None:
        """Take in a sample, above 0."""
        self.samples += 1
        if self.samples <= WARM_UP_SAMPLES:
            self._first.append(value)
            self._first.sort()
            self.value = self._first[(len(self._first) - 1) // 4]
        elif value < self.value:
            self.value *= 1.0 - 0.75 * QUARTILE_STEP
        else:
            self.value *= 1.0 + 0.25 * QUARTILE_STEP
