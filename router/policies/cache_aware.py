"""The default policy: the replica where this request costs everybody the least time.

For each replica i, in seconds; the least wins, ties at random:

    Q_i / P                                      my wait: prefill work left in i's queue
    + WAIT * max(W_i - S_i / P, 0)               what of it is not for my prefix, by the clock
    + (u_i + OWN * min(u_i, LARGE)) / P          my own prefill, and what a cache miss costs others
    + STALL * n_i^0.65 * u_i / P                 the stall my prefill puts on n_i requests in flight
    + DECODE * (b/2 + c * n_i + d * (K_i + L))   decode, mine and what I slow in others'
    + FULL * m_i^3 * (A_i + L) / P               KV memory that running requests hold, me included
    + (1 + OWN + STALL * n_i^0.65) * a_i         loading my LoRA adapter, where i has not got it,
                                                 and EVICTED of it again where another one has to go
    + O * (b/2 + c * n_i + d * K_i) / 2          where it has no place for it: half an answer's time
    + T_i                                        loading what lies in a tier; it stalls nobody

    W_i = max(busy_until_i - now, 0)    m_i = min((A_i + L) / C_i, 1)
    a_i = the seconds that loading it takes; 0 where it is loaded, or none is asked for

divided by the replica's weight (slow start). u_i = L minus what i holds of the prompt; the other
symbols are fields of `router.types.Load` and `RoutingRequest`. docs/design/policies.md has the
reasons and numbers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from math import inf

from router.policies.shortlist import Shortlist
from router.types import AdapterNeed, Choice, Considered, Load, RoutingRequest, slots

WAIT = 3.0
"""Weight of my wait beyond the wait itself: others come after me. Takes from the tail, gives to the
mean."""
OWN = 2.7
"""Weight of what my prefill costs those after me, beside 1 for my own wait: sessions stay where
their history is."""
LARGE = 4096.0
"""Tokens beyond which a prefill costs others no more: what is much longer than a session's last
turns is a prompt that others share, and computed once for all of them."""
STALL = 0.8
"""Weight of the stall on requests in flight. The knob between mean (up) and tail (down)."""
STALL_POWER = 0.65
"""Below 1, since long prompts would else all go to the few replicas with short answers, and wait
for each other there."""
DECODE = 100.0
"""Decode steps that count, of whatever answer, half of them mine: the further ones of a long one
are evened out by other requests before they come. Of a step, b slows me alone. What I add to it
slows the n_i others as much as what they add slows me, so c and d count twice as much."""
EVICTED = 0.5
"""Weight of loading, once more, the adapter whose place is taken, beside 1 for this one. It
settles ties: 0, 0.5 and 1 differ by less than chance does."""
FULL = 1.6
"""Weight of the KV memory that running requests hold, times the share of the whole it is, cubed: a
replica out of memory queues or preempts."""
EVERY_UP_TO = 24
"""In fleets up to this size, the policy computes every replica's cost; in larger ones only a
shortlist's."""


class CacheAware:
    """Least marginal total latency. Options: the weights above by their names in lower case, and
    `seed`.

    No state but that of the shortlist, and of chance.
    """

    def __init__(
        self,
        *,
        wait: float = WAIT,
        own: float = OWN,
        large: float = LARGE,
        stall: float = STALL,
        decode: float = DECODE,
        full: float = FULL,
        every_up_to: int = EVERY_UP_TO,
        seed: int | None = None,
    ) -> None:
        self._weights = (wait, own, large, stall, decode, full)
        self._every_up_to = every_up_to
        rng = random.Random(seed)
        self._random = rng.random
        self._shortlist = Shortlist(rng)
        self.weights = {
            "wait": wait,
            "own": own,
            "large": large,
            "stall": stall,
            "decode": decode,
            "full": full,
        }

    def members(self, names: Mapping[int, str]) -> None:
        """Nothing to prepare: the cost needs no names."""

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Compute the cost of the candidates and pick the least. Reasons: cached (nobody holds
        more of the prompt), load_shed (somebody does, but costs more), no_holder, only_one."""
        wait, own, large, stall, decode, full = self._weights
        eligible = ask.eligible
        size = eligible.bit_count()
        groups = self._shortlist.pick(ask, loads) if size > self._every_up_to else everybody(ask)
        tokens, now, shared = ask.tokens, ask.now, ask.shared
        adapter, loading = ask.adapter, ask.loading
        deepest = 0.0
        for depth, mask in ask.held:
            if mask & eligible:
                deepest = depth
                break
        chosen = -1
        chosen_depth = 0.0
        least = inf
        ties = 1
        considered: list[Considered] = []
        add = considered.append
        for depth, candidates in groups:
            uncached = tokens - depth
            if uncached < 1.0:
                uncached = 1.0
            mine = uncached + own * (uncached if uncached < large else large)
            for slot in candidates:
                load = loads[slot]
                rate = load.prefill_rate
                running = load.in_flight
                taken = load.kv_tokens + tokens
                queued = load.queued_tokens
                work = queued + mine
                if running > 0:  # late news from other routers can make it negative for a moment
                    work += stall * running**STALL_POWER * uncached
                room = load.kv_capacity
                if room:
                    share = taken / room
                    work += full * taken * (share * share * share if share < 1.0 else 1.0)
                cost = work / rate + decode * (
                    load.step_seconds / 2
                    + load.step_request_seconds * running
                    + load.step_token_seconds * (load.context_tokens + tokens)
                )
                waiting = load.busy_until - now
                if shared and slot in shared:
                    waiting -= shared[slot] / rate
                if waiting > 0.0:
                    cost += wait * waiting
                if adapter is not None:
                    cost += self._adapter_cost(adapter, ask, load, slot)
                if loading and slot in loading:
                    cost += loading[slot]
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

    def _adapter_cost(
        self, adapter: AdapterNeed, ask: RoutingRequest, load: Load, slot: int
    ) -> float:
        """Seconds that a request's LoRA adapter costs at a replica. While one is loaded the replica
        computes nothing, so it costs what a prefill of that length does."""
        _, own, _, stall, _, _ = self._weights
        running = load.in_flight if load.in_flight > 0 else 0
        cost = 0.0
        if adapter.cold >> slot & 1:
            cost = adapter.load_seconds * (1.0 + own + stall * running**STALL_POWER)
            if adapter.full >> slot & 1:
                cost *= 1.0 + EVICTED
        if adapter.blocked >> slot & 1:
            step = load.step_seconds / 2 + load.step_request_seconds * running
            step += load.step_token_seconds * load.context_tokens
            cost += ask.output_tokens * step / 2
        return cost


def everybody(ask: RoutingRequest) -> list[tuple[float, Sequence[int]]]:
    """All of `ask.eligible`: (leading tokens held, slots), deepest first."""
    left = ask.eligible
    groups: list[tuple[float, Sequence[int]]] = []
    for depth, mask in ask.held:
        mask &= left
        if mask:
            left ^= mask
            groups.append((depth, slots(mask)))
    groups.append((0.0, slots(left)))
    return groups
