"""The one joint between index, policy and books: where a request goes, and what is remembered of
it.

Synchronous and without a clock, so that the HTTP path and the virtual-time simulator run the same
code.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf
from typing import Protocol

import msgspec

from router.scheduling.accounting import charge, finished, first_token, prefill_done, refund
from router.scheduling.learning import MIN_OUTPUT_TOKENS, ModelFacts, Speeds, expected_step
from router.scheduling.prefills import Prefill, Prefills
from router.types import (
    NOTHING_SHARED,
    Chain,
    Choice,
    Considered,
    Load,
    Policy,
    PrefixIndex,
    RoutingRequest,
    slots,
)

PREFIX_BLOCKS = 16
"""Blocks of a prompt that stand in for a session key: about 4 KiB, past what unrelated prompts
share."""

INDEX_ROOM = 1.0
"""Size of the index's LRU in units of the replica's KV cache. Where caches bind, believing in
blocks that were evicted costs more than forgetting some that are pinned."""

RETOUCH_AFTER_S = 0.5
"""Seconds a request must have lasted for its end to count as another use of its blocks: an order
of use
finer than that decides nothing, and most of a short request's cost would be the second
recording."""

MAX_MODELS = 1024
"""Models whose facts are kept."""

MIN_SHARED_PREFILL_TOKENS = 512.0
"""Uncached tokens from which on a prefill is worth knowing to those who share it."""


class Placement(msgspec.Struct, gc=False):
    """One request's place and its charges in the books. Tokens are estimates, times monotonic
    seconds."""

    slot: int
    chain: Chain
    model: str
    prompt_bytes: int
    """The prompt's size in the index's weight: canonical bytes."""
    tokens: float
    """L: prompt tokens."""
    held_tokens: float
    """Prompt tokens the chosen replica is believed to hold."""
    available_tokens: float
    """The most any eligible replica is believed to hold."""
    uncached: float
    """u, as charged to the books."""
    reason: str
    considered: Sequence[Considered]
    """The candidates; empty where the policy computes no cost."""
    sent_at: float
    load: Load
    """The replica's books; kept, as the slot may be another replica's by the time this ends."""
    stream: bool
    found_idle_queue: bool
    """No prefill was known to be queued there when this was sent, nor heard of until its first
    token: its wait is its own."""
    first: bool = False
    """The first token is booked: nothing of this is queued any more."""
    first_seconds: float = 0.0
    """From being sent to the first token; 0 while unknown."""
    first_expected: float = 0.0
    """What those in flight at its first token add to a decode step, as `expected_step` has it."""
    first_prefilled: float = 0.0
    """Tokens its replica had prefilled by then."""
    done: bool = False
    prefill: Prefill | None = None
    """What it has the replica compute, until that is done."""
    exact: object | None = None
    """What exact mode keeps of it (router.exact.placing); None where it does not apply."""
    more: Sequence[Chain] = ()
    """The chains of its other prompts, when it has several."""
    serial: int = 0
    """Its number among those other routers were told of; 0 when they were not."""


class PlacementListener(Protocol):
    """Told of a placer's own requests, on their way: it must take next to no time."""

    def routed(self, placement: Placement) -> None:
        """It was placed."""
        ...

    def first_token(self, placement: Placement) -> None:
        """Its first token is booked."""
        ...

    def finished(self, placement: Placement) -> None:
        """Its answer ended."""
        ...

    def failed(self, placement: Placement) -> None:
        """Nothing was answered."""
        ...


class Placer:
    """Places requests and keeps the books. `loads` is the fleet's list by slot, shared with it.

    The mutable state is the index, the loads, `models` (what was learned of each model), the
    replicas' speeds, `_peer_heard_at` (when another router was last heard to have sent something to
    a slot), `_prefills` (which prefixes are being computed, for other routers' requests too), and
    `_awaiting_prefill`: requests that will show no first token, by when their prefill should be
    done.
    """

    def __init__(
        self,
        index: PrefixIndex,
        policy: Policy,
        loads: Sequence[Load],
        *,
        learn_speed: bool = True,
        bytes_per_token: float = 4.0,
    ) -> None:
        self.index = index
        self.policy = policy
        self.loads = loads
        self.models: dict[str, ModelFacts] = {}
        self._unknown = ModelFacts(bytes_per_token)
        self.listener: PlacementListener | None = None
        """Who tells other routers."""
        self._speeds = Speeds(loads)
        self._prefills = Prefills(index.spans)
        self._peer_heard_at: dict[int, float] = {}
        self._learn_speed = learn_speed
        self._bytes_per_token = bytes_per_token
        self._awaiting_prefill: list[tuple[float, int, Placement]] = []
        self._placed = 0

    def place(
        self,
        chain: Chain,
        size: int,
        model: str,
        eligible: int,
        key: str,
        now: float,
        *,
        stream: bool = True,
        output_limit: int = 0,
        more: Sequence[Chain] = (),
    ) -> Placement:
        """Choose one of `eligible` (a mask, not 0, without the replicas already tried) and charge
        it.

        `size` is the prompt's canonical bytes. A request that is not a stream shows no first
        token; it is booked when its prefill should be done. `output_limit` caps the answer
        expected; 0 unknown. `more` are the chains of the body's other prompts.
        """
        if not eligible:
            raise ValueError("place() needs at least one eligible replica")
        awaiting = self._awaiting_prefill
        while awaiting and awaiting[0][0] <= now:
            late = heappop(awaiting)[2]
            if not late.first:
                late.first = True
                self._computed(late)
                prefill_done(late.load, late.uncached, now)
                if self.listener is not None:
                    self.listener.first_token(late)
        ask = self._ask(chain, size, model, eligible, key, now, output_limit)
        if more:
            self._add_more(ask, model, more)
        choice = self.policy.choose(ask, self.loads)
        placement = self._book(ask, choice, chain, size, model, stream)
        if more:
            placement.more = more
            for each in more:
                self._record(placement.slot, placement.load, each, now, placement.tokens / size)
        return placement

    def _add_more(self, ask: RoutingRequest, model: str, more: Sequence[Chain]) -> None:
        """Count what is held of a body's other prompts too."""
        scale = 1.0 / self.models.get(model, self._unknown).bytes_per_token
        held = {slot: tokens for tokens, mask in ask.held for slot in slots(mask)}
        for chain in more:
            for weight, mask in self.index.match(chain):
                for slot in slots(mask):
                    held[slot] = held.get(slot, 0.0) + weight * scale
        ask.held = [
            (tokens, 1 << slot)
            for slot, tokens in sorted(held.items(), key=lambda one: one[1], reverse=True)
        ]

    def estimate(self, model: str, size: int) -> float:
        """Tokens of a prompt of so many canonical bytes, as far as the model is known."""
        facts = self.models.get(model)
        return size / (self._bytes_per_token if facts is None else facts.bytes_per_token)

    def _ask(
        self,
        chain: Chain,
        size: int,
        model: str,
        eligible: int,
        key: str,
        now: float,
        output_limit: int,
    ) -> RoutingRequest:
        facts = self.models.get(model, self._unknown)
        scale = 1.0 / facts.bytes_per_token
        output = facts.output_tokens
        if 0 < output_limit < output:
            output = float(output_limit)
        blocks = len(chain)
        tokens = float(int(size * scale) + 1)
        if not blocks:
            return RoutingRequest(eligible, tokens, [], output, key, 0, now)
        prefix = chain[PREFIX_BLOCKS - 1 if blocks > PREFIX_BLOCKS else blocks - 1]
        found = self.index.match(chain)
        held = [(weight * scale, mask) for weight, mask in found]
        prefills = self._prefills
        shared = NOTHING_SHARED
        if prefills:
            depth = next((prefills.blocks(weight) for weight, mask in found if mask & eligible), 0)
            under_way = prefills.shared(chain, depth) if depth else None
            if under_way:
                shared = {slot: each * scale for slot, each in under_way.items()}
        return RoutingRequest(eligible, tokens, held, output, key, prefix, now, shared)

    def _book(
        self, ask: RoutingRequest, choice: Choice, chain: Chain, size: int, model: str, stream: bool
    ) -> Placement:
        slot = choice.slot
        now = ask.now
        tokens = ask.tokens
        eligible = ask.eligible
        mine = available = 0.0
        for depth, mask in ask.held:
            if not available and mask & eligible:
                available = depth
            if mask >> slot & 1:
                mine = depth
                break
        uncached = float(int(tokens - mine))
        if uncached < 1.0:
            uncached = 1.0
        load = self.loads[slot]
        placement = Placement(
            slot,
            chain,
            model,
            size,
            tokens,
            mine,
            available,
            uncached,
            choice.reason,
            choice.considered,
            now,
            load,
            stream,
            not load.queued_tokens,
        )
        charge(load, uncached, tokens, now)
        if not stream:
            self._placed += 1
            heappush(self._awaiting_prefill, (load.busy_until, self._placed, placement))
        if chain:
            placement.prefill = self._prefill(slot, chain, size, uncached, tokens)
            self._record(slot, load, chain, now, tokens / size)
        if self.listener is not None:
            self.listener.routed(placement)
        return placement

    def _record(self, slot: int, load: Load, chain: Chain, now: float, scale: float) -> None:
        index = self.index
        index.record(slot, chain, now)
        room = index.room(slot)
        load.cache_used = room.used * scale
        load.cache_tokens = room.capacity * scale

    def first_token(self, placement: Placement, now: float) -> None:
        """The first byte of a streamed answer came. Does nothing for an answer that is not a
        stream."""
        if placement.stream and not placement.first:
            placement.first = True
            placement.first_seconds = now - placement.sent_at
            # Asked here and not at the answer's end: what others send after the first token was
            # not before it.
            if self._peer_heard_at.get(placement.slot, -inf) >= placement.sent_at:
                placement.found_idle_queue = False
            self._computed(placement)
            load = placement.load
            first_token(load, placement.uncached, now)
            placement.first_expected = expected_step(load)
            placement.first_prefilled = load.prefilled_tokens
            if self.listener is not None:
                self.listener.first_token(placement)

    def finished(
        self,
        placement: Placement,
        now: float,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = -1,
    ) -> None:
        """The answer ended, or was cancelled after it began. 0 tokens, or -1 cached: not known."""
        if placement.done:
            return
        placement.done = True
        load = placement.load
        slot = placement.slot
        current = self.loads[slot] is load
        first_seconds = placement.first_seconds
        if first_seconds and current and self._learn_speed:
            if output_tokens >= MIN_OUTPUT_TOKENS:
                stalled = (load.prefilled_tokens - placement.first_prefilled) / load.prefill_rate
                self._speeds.saw_decode(
                    slot,
                    (placement.first_expected + expected_step(load)) / 2.0,
                    (now - placement.sent_at - first_seconds - stalled) / (output_tokens - 1),
                )
            if placement.found_idle_queue:
                uncached = placement.uncached
                if prompt_tokens and cached_tokens >= 0:
                    uncached = float(prompt_tokens - cached_tokens)
                self._speeds.saw_prefill(slot, uncached, first_seconds)
        if placement.first:
            finished(load, placement.uncached, placement.tokens)
        else:
            placement.first = True
            self._computed(placement)
            refund(load, placement.uncached, placement.tokens, now)
        if self.listener is not None:
            self.listener.finished(placement)
        if placement.chain and current and now - placement.sent_at > RETOUCH_AFTER_S:
            scale = placement.tokens / placement.prompt_bytes
            self._record(slot, load, placement.chain, now, scale)
            for each in placement.more:
                self._record(slot, load, each, now, scale)
        if prompt_tokens or output_tokens:
            facts = self._facts(placement.model)
            if prompt_tokens:
                facts.saw_prompt(placement.prompt_bytes, prompt_tokens)
            if output_tokens:
                facts.saw_answer(output_tokens)

    def _facts(self, model: str) -> ModelFacts:
        """What is known of a model that an engine has answered for.

        Where engines answer for any name, the model known for longest makes room.
        """
        facts = self.models.get(model)
        if facts is None:
            if len(self.models) >= MAX_MODELS:
                del self.models[next(iter(self.models))]
            facts = self.models[model] = ModelFacts(self._bytes_per_token)
        return facts

    def failed(self, placement: Placement, now: float) -> None:
        """Nothing was answered: take the charges back, so that it can be placed elsewhere."""
        if placement.done:
            return
        placement.done = True
        if placement.first:
            finished(placement.load, placement.uncached, placement.tokens)
        else:
            placement.first = True
            self._computed(placement)
            refund(placement.load, placement.uncached, placement.tokens, now)
        if self.listener is not None:
            self.listener.failed(placement)

    def _prefill(
        self, slot: int, chain: Chain, size: int, uncached: float, tokens: float
    ) -> Prefill | None:
        """Note what a request has its replica compute, where that is worth it."""
        if uncached < MIN_SHARED_PREFILL_TOKENS:
            return None
        # A token more, since estimates are rounded to whole ones.
        return self._prefills.begin(slot, chain, (tokens - uncached + 1.0) / tokens * size)

    def _computed(self, placement: Placement) -> None:
        """Its prefill is over, or will never be done."""
        if placement.prefill is not None:
            self._prefills.end(placement.prefill)
            placement.prefill = None

    def apply_peer_routed(
        self, slot: int, chain: Chain, size: int, uncached: float, tokens: float, now: float
    ) -> Prefill | None:
        """Another router sent a request to this slot. What it has the replica compute is to be
        handed to the call that says that this is over."""
        load = self.loads[slot]
        self._peer_heard_at[slot] = now
        charge(load, uncached, tokens, now)
        prefill = None
        if chain:
            prefill = self._prefill(slot, chain, size, uncached, tokens)
            self._record(slot, load, chain, now, tokens / size)
        return prefill

    def apply_peer_first_token(
        self, slot: int, uncached: float, now: float, prefill: Prefill | None = None
    ) -> None:
        """A request another router sent there has its first token."""
        if prefill is not None:
            self._prefills.end(prefill)
        first_token(self.loads[slot], uncached, now)

    def apply_peer_finished(
        self, slot: int, chain: Chain, size: int, uncached: float, tokens: float, now: float
    ) -> None:
        """A request another router sent there, whose first token was heard of, has ended."""
        load = self.loads[slot]
        finished(load, uncached, tokens)
        if chain:
            self._record(slot, load, chain, now, tokens / size)

    def apply_peer_failed(
        self,
        slot: int,
        uncached: float,
        tokens: float,
        now: float,
        prefill: Prefill | None = None,
    ) -> None:
        """A request another router sent there is gone, without a first token."""
        if prefill is not None:
            self._prefills.end(prefill)
        refund(self.loads[slot], uncached, tokens, now)


NO_CHAIN: Chain = array("Q")
"""The chain of a prompt too short to have a block."""
