"""The default policy: the replica where this request costs everybody the least time.

For each replica i, in seconds; the least wins, ties at random:

    WAIT * Q_i / P                            my wait: prefill work left in i's queue
    + (1 + (OWN - 1) / sqrt(h)) * u_i / P     my own prefill, and what waste costs everybody
    + STALL * n_i^0.7 * u_i / P               the stall my prefill puts on n_i requests in flight
    + DECODE * O * (c * n_i + d * (K_i + L))  how slow decode is there, for my answer
    + (MEMORY + FULL * m_i^3) * (A_i + L) / P     KV memory that running requests hold, me included
    + FULL_OWN * m_i^3 * u_i / P              what I would add to it

    m_i = min((A_i + L) / C_i, 1)

all of it divided by the replica's weight (slow start). u_i = L minus what i holds of the prompt; h
is how many replicas hold the deepest part of it that any of them holds; the other symbols are
fields of `router.types.Load` and `Ask`. docs/policies.md has the reasons and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import inf, sqrt

from router.policies.shortlist import Shortlist
from router.types import Ask, Choice, Considered, Load, slots

WAIT = 2.2
"""Weight of my wait: what I wait, and those who come after me. Takes from the tail, gives to the
mean."""
OWN = 2.5
"""Weight of my own prefill where one replica holds the prefix: 1 for my wait, the rest for what a
cache miss costs those after me. The more hold it, the surer will a further copy be used again."""
STALL = 0.65
"""Weight of the stall on requests in flight. The knob between mean (up) and tail (down)."""
STALL_POWER = 0.7
"""Below 1, since long prompts would else all go to the few replicas with short answers, and wait
for each other there."""
DECODE = 0.3
"""Weight of my decode time, part of which I would spend anywhere."""
MEMORY = 0.1
"""Weight of the KV memory running requests hold."""
FULL = 1.4
"""What is added to it for the share of the memory they hold, cubed: a replica out of memory queues
or preempts."""
FULL_OWN = 7.0
"""What is added to my own prefill's weight for that share, cubed: where memory is scarce, a copy of
what another replica holds takes room from requests that wait for it."""
EVERY_UP_TO = 24
"""Fleets up to this size have every replica's cost computed; larger ones a shortlist's."""


class CacheAware:
    """Least marginal total latency. Options: the weights above by their names in lower case, and
    `seed`."""

    def __init__(
        self,
        *,
        wait: float = WAIT,
        own: float = OWN,
        stall: float = STALL,
        decode: float = DECODE,
        memory: float = MEMORY,
        full: float = FULL,
        full_own: float = FULL_OWN,
        every_up_to: int = EVERY_UP_TO,
        seed: int | None = None,
    ) -> None:
        self._weights = (wait, own, stall, decode, memory, full, full_own)
        self._every_up_to = every_up_to
        rng = random.Random(seed)
        self._random = rng.random
        self._shortlist = Shortlist(rng)

    def members(self, names: Mapping[int, str]) -> None:
        """Nothing to prepare: the cost needs no names."""

    def choose(self, ask: Ask, loads: Sequence[Load]) -> Choice:
        """Compute the cost of the candidates and pick the least. Reasons: cached (nobody holds
        more of the prompt), load_shed (somebody does, but costs more), no_holder, only_one."""
        wait, own, stall, decode, memory, full, full_own = self._weights
        left = eligible = ask.eligible
        size = eligible.bit_count()
        if size > self._every_up_to:
            left = self._shortlist.pick(ask, loads)
        tokens = ask.tokens
        decode_tokens = decode * ask.output_tokens
        deepest = -1.0
        chosen = -1
        chosen_depth = 0.0
        least = inf
        ties = 1
        considered: list[Considered] = []
        add = considered.append
        for depth, mask in (*ask.held, (0.0, left)):
            if deepest < 0.0 and mask & eligible:
                deepest = depth
                if depth > 0.0:
                    own = 1.0 + (own - 1.0) / sqrt((mask & eligible).bit_count())
            mask &= left
            if not mask:
                continue
            left ^= mask
            uncached = tokens - depth
            if uncached < 1.0:
                uncached = 1.0
            for slot in slots(mask):
                load = loads[slot]
                rate = load.prefill_rate
                running = load.in_flight
                taken = load.kv_tokens + tokens
                each = own
                if running > 0:  # late news from other routers can make it negative for a moment
                    each += stall * running**STALL_POWER
                pressure = memory
                room = load.kv_capacity
                if room:
                    share = taken / room
                    share = share * share * share if share < 1.0 else 1.0
                    pressure += full * share
                    each += full_own * share
                queued = load.queued_tokens
                cost = (
                    wait * queued + each * uncached + pressure * taken
                ) / rate + decode_tokens * (
                    load.step_request_seconds * running
                    + load.step_token_seconds * (load.context_tokens + tokens)
                )
                weight = load.weight
                if weight != 1.0:
                    cost /= weight
                add((slot, depth, cost, queued, running))
                if cost < least:
                    least = cost
                    chosen = slot
                    chosen_depth = depth
                    ties = 1
                elif cost == least:
                    ties += 1
                    if self._random() * ties < 1.0:
                        chosen = slot
                        chosen_depth = depth
        if size == 1:
            reason = "only_one"
        elif deepest <= 0.0:
            reason = "no_holder"
        elif chosen_depth >= deepest:
            reason = "cached"
        else:
            reason = "load_shed"
        return Choice(chosen, reason, considered)
