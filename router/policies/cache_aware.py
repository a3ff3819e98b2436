"""The default policy: the replica where this request costs everybody the least time.

For each replica i, in seconds; the least wins, ties at random:

    Q_i / P                                   my wait: prefill work left in i's queue
    + WAIT * max(W_i - S_i / P, 0)            what of it is not for my prefix as well, by the clock
    + OWN * u_i / P                           my own prefill, and what a cache miss costs others
    + STALL * n_i^0.65 * u_i / P              the stall my prefill puts on n_i requests in flight
    + DECODE * cbrt(100^2 * O) * (c * n_i + d * (K_i + L))  how slow decode is there, for my answer
    + (MEMORY + FULL * m_i^3) * (A_i + L) / P     KV memory that running requests hold, me included
    + FULL_OWN * m_i^3 * u_i / P              what I would add to it
    - saved, where others hold more of the prompt  what one more copy would have saved before

    W_i = max(busy_until_i - now, 0)    m_i = min((A_i + L) / C_i, 1)

all but what was saved divided by the replica's weight (slow start). u_i = L minus what i holds of
the prompt; the other symbols are fields of `router.types.Load` and `Ask`. docs/policies.md has the
reasons and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import cbrt, inf

from router.policies.savings import Savings
from router.policies.shortlist import Shortlist, everybody
from router.types import Ask, Choice, Considered, Load

WAIT = 3.0
"""Weight of my wait beyond the wait itself: others come after me. Takes from the tail, gives to the
mean."""
OWN = 3.7
"""Weight of my own prefill: 1 for my wait, the rest for what a cache miss costs those after me."""
STALL = 0.8
"""Weight of the stall on requests in flight. The knob between mean (up) and tail (down)."""
STALL_POWER = 0.65
"""Below 1, since long prompts would else all go to the few replicas with short answers, and wait
for each other there."""
DECODE = 0.48
"""Weight of my decode time, part of which I would spend anywhere."""
DECODE_TOKENS = 100.0
"""An answer of so many tokens has that weight. One eight times as long has twice of it, not eight
times: other requests even out what is uneven long before it ends."""
MEMORY = 0.1
"""Weight of the KV memory running requests hold."""
FULL = 1.6
"""What is added to it for the share of the memory they hold, cubed: a replica out of memory queues
or preempts."""
FULL_OWN = 25.0
"""What is added to my own prefill's weight for that share, cubed: where memory is scarce, a copy of
what another replica holds takes room from requests that wait for it."""
SAVED = 0.025
"""The part of what a copy would have saved that counts towards it, for each replica that holds the
prefix. A part, since those who would gain by a copy often come at the same moment, and one is
enough for them; more the more hold it, since that tells how often it is asked for."""
EVERY_UP_TO = 24
"""Fleets up to this size have every replica's cost computed; larger ones a shortlist's."""


class CacheAware:
    """Least marginal total latency. Options: the weights above by their names in lower case, and
    `seed`.

    The mutable state is `_savings`, of the prefixes whose holders were dearer than others.
    """

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
        saved: float = SAVED,
        every_up_to: int = EVERY_UP_TO,
        seed: int | None = None,
    ) -> None:
        self._weights = (wait, own, stall, decode, memory, full, full_own)
        self._saved = saved
        self._every_up_to = every_up_to
        rng = random.Random(seed)
        self._random = rng.random
        self._shortlist = Shortlist(rng)
        self._savings = Savings()

    def members(self, names: Mapping[int, str]) -> None:
        """Nothing to prepare: the cost needs no names."""

    def choose(self, ask: Ask, loads: Sequence[Load]) -> Choice:
        """Compute the cost of the candidates and pick the least. Reasons: cached (nobody holds
        more of the prompt), load_shed (somebody does, but costs more), no_holder, only_one."""
        wait, own, stall, decode, memory, full, full_own = self._weights
        eligible = ask.eligible
        size = eligible.bit_count()
        groups = self._shortlist.pick(ask, loads) if size > self._every_up_to else everybody(ask)
        tokens, now, shared, prefix = ask.tokens, ask.now, ask.shared, ask.deepest
        decode_tokens = decode * cbrt(DECODE_TOKENS * DECODE_TOKENS * ask.output_tokens)
        saved = self._savings.of(prefix, now) if prefix else 0.0
        deepest = share_saved = 0.0
        for depth, mask in ask.held:
            if mask & eligible:
                deepest = depth
                share_saved = self._saved * (mask & eligible).bit_count()
                break
        chosen = -1
        chosen_depth = 0.0
        least = least_holder = least_copied = inf
        ties = 1
        considered: list[Considered] = []
        add = considered.append
        for depth, candidates in groups:
            uncached = tokens - depth
            if uncached < 1.0:
                uncached = 1.0
            missing = deepest - depth
            for slot in candidates:
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
                cost = (queued + each * uncached + pressure * taken) / rate + decode_tokens * (
                    load.step_request_seconds * running
                    + load.step_token_seconds * (load.context_tokens + tokens)
                )
                waiting = load.busy_until - now
                if shared and slot in shared:
                    waiting -= shared[slot] / rate
                if waiting > 0.0:
                    cost += wait * waiting
                weight = load.weight
                if weight != 1.0:
                    cost /= weight
                if missing > 0.0:
                    copied = cost - each * missing / (rate * weight)
                    if copied < least_copied:
                        least_copied = copied
                    cost -= saved
                elif cost < least_holder:
                    least_holder = cost
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
        if prefix:
            if chosen_depth < deepest:
                self._savings.spend(prefix)
            elif least_copied < least_holder < inf:
                if share_saved > 1.0:
                    share_saved = 1.0
                # What the other routers see of this prefix would have saved as much each time.
                saved += share_saved * ask.routers * (least_holder - least_copied)
                self._savings.put(prefix, saved, now)
        if size == 1:
            reason = "only_one"
        elif deepest <= 0.0:
            reason = "no_holder"
        elif chosen_depth >= deepest:
            reason = "cached"
        else:
            reason = "load_shed"
        return Choice(chosen, reason, considered)
