"""Places requests: asks the index, lets the policy choose, charges the loads, notes what is held.

Everything here is synchronous and has no clock of its own, so that the HTTP path and the
virtual-time simulator run the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Protocol

import msgspec

from router.prompt.prompt import Prompt
from router.scheduling.accounting import (
    charge,
    expected_step,
    finished,
    first_token,
    prefill_done,
    queue_up,
    refund,
    stop_loading,
)
from router.scheduling.adapters import Adapters
from router.scheduling.bodies import held_of_all
from router.scheduling.device_model import TierModel
from router.scheduling.engine_reports import EngineReports, PendingReport
from router.scheduling.learning import (
    BYTES_PER_TOKEN,
    MIN_OUTPUT_TOKENS,
    ModelFacts,
    Speeds,
)
from router.scheduling.peer_request import PeerRequest
from router.scheduling.prefills import Prefill, Prefills
from router.scheduling.tier_prices import TierPrices
from router.types import (
    NOTHING_BEHIND,
    NOTHING_SHARED,
    AdapterNeed,
    Chain,
    Choice,
    Considered,
    Load,
    Policy,
    PrefixIndex,
    RoutingRequest,
    TierShare,
    slots,
)

PREFIX_BLOCKS = 16
"""Blocks of a prompt that stand in for a session key: about 4 KiB, past what unrelated prompts
share."""

INDEX_ROOM = 1.0
"""Size of the index's LRU in units of the replica's KV cache. Where caches bind, believing in
blocks that were evicted costs more than forgetting some that are pinned."""

RETOUCH_AFTER_S = 0.5
"""Seconds a request must have lasted for its end to count as another use of its blocks: a finer
order of use decides nothing, and the second recording would be most of a short request's cost."""

MAX_MODELS = 1024
"""The most models whose facts are kept."""

MIN_SHARED_PREFILL_TOKENS = 512.0
"""Uncached tokens from which on a prefill is worth knowing to those who share it."""

NO_RATES: Mapping[str, float] = {}


def index_weight(tokens: int) -> int:
    """Canonical bytes that a replica's LRU in the index gets for a KV cache of so many tokens."""
    return int(tokens * BYTES_PER_TOKEN * INDEX_ROOM)


class Placement(msgspec.Struct, gc=False):
    """One request at one replica, and what it was charged. Tokens are estimates, times monotonic
    seconds. It is settled once, by `finished` or by `failed`."""

    placer: Placer
    """The placer that made this placement and keeps the loads charged for it."""
    prompt: Prompt
    slot: int
    tokens: float
    """The estimated tokens of the prompt (L in docs/design/policies.md)."""
    held_tokens: float
    """Prompt tokens that the chosen replica is believed to hold, those in tiers included."""
    available_tokens: float
    """The most prompt tokens that any eligible replica is believed to hold."""
    uncached: float
    """The uncached tokens charged to the load (u in docs/design/policies.md)."""
    reason: str
    considered: Sequence[Considered]
    """The candidates with their costs; empty if the policy computes none."""
    sent_at: float
    load: Load
    """The replica's load; kept, as the slot may be another replica's by the time this ends."""
    found_idle_queue: bool
    """No prefill was known to be queued there when this was sent, nor heard of until its first
    token: its wait is its own."""
    elsewhere: float = 0.0
    """Of the uncached tokens, those that another replica computes."""
    first: bool = False
    """Whether the first token is counted. From then on nothing of this request is queued."""
    first_seconds: float = 0.0
    """Seconds from sending to the first token; 0 while unknown."""
    first_expected: float = 0.0
    """What those in flight at its first token add to a decode step, as `expected_step` has it."""
    first_prefilled: float = 0.0
    """Tokens that its replica had prefilled by the first token."""
    done: bool = False
    prefill: Prefill | None = None
    """The blocks that its replica computes for it; None once they are done."""
    report: PendingReport | None = None
    """Waits for what the engine reports of its prompt; None where that does not count."""
    serial: int = 0
    """Its number among the requests reported to other routers; 0 if it was not reported."""
    eligible: int = 0
    """Mask of the replicas that were chosen among."""
    adapter: AdapterNeed | None = None
    """Where these stood with its LoRA adapter; None where it asks for none."""
    loads_adapter: bool = False
    """The chosen replica had to load it."""
    behind: TierShare | None = None
    """What of the held tokens lies in tiers behind GPU memory; None for nothing."""
    loading: float = 0.0
    """Seconds of loading that were charged for it."""
    loading_ends: float = 0.0
    """When it should have been loaded."""
    load_teaches: bool = False
    """Whether its first token tells what loading takes."""
    reported_prompt: int = 0
    """Prompt tokens that the engine reported at the end; 0 when it did not."""
    reported_cached: int = -1
    """Tokens of them that it reused; -1 when it did not report them."""

    def first_token(self, now: float) -> None:
        """The first byte of a streamed answer came. Does nothing for an answer that is not a
        stream."""
        if not self.prompt.stream or self.first:
            return
        placer, load = self.placer, self.load
        self.first = True
        self.first_seconds = now - self.sent_at
        # Asked here and not at the answer's end: what others send after the first token was not
        # before it.
        if placer._peer_heard_at.get(self.slot, -inf) >= self.sent_at:
            self.found_idle_queue = False
        self._end_prefill()
        if self.loads_adapter:
            placer.learn_load(self)
        first_token(load, self.to_compute, now)
        self.first_expected = expected_step(load)
        self.first_prefilled = load.prefilled_tokens
        if placer.listener is not None:
            placer.listener.first_token(self)

    def relieve(self, now: float) -> None:
        """Another replica computes the prompt: nothing of it is queued here but one token, while
        its KV will be here all the same. To be called before the first token. Its wait teaches
        nothing of this replica's speed."""
        spare = self.uncached - 1.0 - self.elsewhere
        self.found_idle_queue = False
        self._end_prefill()
        if spare > 0.0 and not self.first:
            prefill_done(self.load, spare, now)
            self.elsewhere += spare

    def burden(self, now: float) -> None:
        """This replica computes the prompt after all."""
        again, self.elsewhere = self.elsewhere, 0.0
        if again and not self.first:
            queue_up(self.load, again, now)

    @property
    def to_compute(self) -> float:
        """Of the uncached tokens, those that this replica computes itself."""
        return self.uncached - self.elsewhere

    def prefill_overdue(self, now: float) -> None:
        """Called when its prefill should be done, but no first token has shown."""
        if self.first:
            return
        self.first = True
        self._end_prefill()
        prefill_done(self.load, self.to_compute, now)
        if self.placer.listener is not None:
            self.placer.listener.first_token(self)

    def finished(
        self, now: float, prompt_tokens: int = 0, output_tokens: int = 0, cached_tokens: int = -1
    ) -> None:
        """The answer ended, or was cancelled after it began. 0 tokens, or -1 cached: not known."""
        if self.done:
            return
        self.done = True
        self.reported_prompt, self.reported_cached = prompt_tokens, cached_tokens
        placer, load, prompt = self.placer, self.load, self.prompt
        current = placer.loads[self.slot] is load and not load.left
        if self.first_seconds and current and placer.learn_speed:
            placer.learn_speeds(self, now, prompt_tokens, output_tokens, cached_tokens)
        if not self.first:
            self.first = True
            self._end_prefill()
            prefill_done(load, self.to_compute, now)
        self._end_loading(now)
        finished(load, self.uncached, self.tokens)
        if placer.listener is not None:
            placer.listener.finished(self)
        if current and prompt.chain and now - self.sent_at > RETOUCH_AFTER_S:
            placer.touch(self, now)
        if prompt_tokens or output_tokens:
            placer.learn_model(prompt, prompt_tokens, output_tokens)
        if self.report is not None:
            self.report.finished(self.held_tokens, cached_tokens, now)
        if self.adapter is not None:
            placer.adapter_ended(self)

    def failed(self, now: float) -> None:
        """Take the charges back after no answer, so that the request can be placed elsewhere."""
        if self.done:
            return
        self.done = True
        if not self.first:
            self.first = True
            self._end_prefill()
            prefill_done(self.load, self.to_compute, now)
        self._end_loading(now)
        finished(self.load, self.uncached, self.tokens)
        if self.placer.listener is not None:
            self.placer.listener.failed(self)
        if self.report is not None:
            self.report.failed()
        if self.adapter is not None:
            self.placer.adapter_ended(self)

    def _end_loading(self, now: float) -> None:
        """Nothing is loaded for it any more, whatever was expected."""
        stop_loading(self.load, self.loading, self.loading_ends, now)

    def _end_prefill(self) -> None:
        """Note that its prefill is done, or never will be."""
        if self.prefill is not None:
            self.placer._prefills.end(self.prefill)
            self.prefill = None


class PlacementListener(Protocol):
    """Is called for each of a placer's own requests. It runs on the hot path, so it must return at
    once."""

    def routed(self, placement: Placement) -> None:
        """Called when a request was placed."""
        ...

    def first_token(self, placement: Placement) -> None:
        """Called at the first token, or when the prefill should be done."""
        ...

    def finished(self, placement: Placement) -> None:
        """Called when an answer has ended."""
        ...

    def failed(self, placement: Placement) -> None:
        """Called when a request ended without an answer."""
        ...


class Placer:
    """Places requests and keeps the loads. `loads` is the fleet's list by slot, shared with it.

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
        reports: EngineReports | None = None,
        adapters: Adapters | None = None,
        tiers: TierModel | None = None,
        tier_rates: Mapping[str, float] = NO_RATES,
    ) -> None:
        """`reports` is what exact mode knows. With None, only what was sent counts. With None for
        `adapters`, where an adapter is loaded does not count. `tiers` tells what lies behind GPU
        memory. tier_rates: tokens a second by medium, to begin with."""
        self.index = index
        self.policy = policy
        self.loads = loads
        self.learn_speed = learn_speed
        self.models: dict[str, ModelFacts] = {}
        self.listener: PlacementListener | None = None
        """Receives this placer's requests, to tell the other routers."""
        self.prices = TierPrices(loads, tier_rates)
        self._tiers = tiers
        self._reports = reports
        self._adapters = adapters
        self._unknown = ModelFacts()
        self._speeds = Speeds(loads)
        self._prefills = Prefills(index.spans)
        self._peer_heard_at: dict[int, float] = {}
        self._awaiting_prefill: list[tuple[float, int, Placement]] = []
        self._placed = 0

    def place(self, prompt: Prompt, eligible: int, now: float) -> Placement:
        """Choose one of `eligible` (a mask, not 0, without the replicas already tried) and charge
        it.

        A request that is not a stream shows no first token; it is booked when its prefill should be
        done.
        """
        if not eligible:
            raise ValueError("place() needs at least one eligible replica")
        awaiting = self._awaiting_prefill
        while awaiting and awaiting[0][0] <= now:
            heappop(awaiting)[2].prefill_overdue(now)
        request = self._request(prompt, eligible, now)
        return self._charge(prompt, request, self.policy.choose(request, self.loads))

    def estimate(self, prompt: Prompt) -> float:
        """The estimated tokens of a prompt, with what was learned of its model."""
        facts = self.models.get(prompt.model, self._unknown)
        return facts.tokens_of(prompt.size, len(prompt.media))

    def usual_answer(self, model: str) -> float:
        """The mean length of a model's answers in tokens, as far as it is known."""
        return self.models.get(model, self._unknown).output_tokens

    def uncached(self, prompt: Prompt) -> float:
        """Tokens of a prompt that no replica is believed to hold."""
        found = self.index.match(prompt.chain) if prompt.chain else ()
        facts = self.models.get(prompt.model, self._unknown)
        held = facts.begins(found[0][0], prompt.media) if found else 0.0
        return self.estimate(prompt) - held

    def _request(self, prompt: Prompt, eligible: int, now: float) -> RoutingRequest:
        """What the policy gets to know of a prompt."""
        facts = self.models.get(prompt.model, self._unknown)
        scale = 1.0 / facts.bytes_per_token
        tokens = float(int(prompt.size * scale) + 1)
        if prompt.media:
            tokens = float(int(facts.tokens_of(prompt.size, len(prompt.media))) + 1)
            scale = tokens / prompt.size
        output = facts.output_tokens
        if 0 < prompt.output_limit < output:
            output = float(prompt.output_limit)
        held: list[tuple[float, int]] = []
        prefix = 0
        shared = NOTHING_SHARED
        behind = NOTHING_BEHIND
        chain = prompt.chain
        blocks = len(chain)
        if blocks:
            prefix = chain[PREFIX_BLOCKS - 1 if blocks > PREFIX_BLOCKS else blocks - 1]
            found = self.index.match(chain)
            if self._prefills.starts:
                shared = self._prefills.tokens(chain, found, eligible, scale)
            if self._tiers is not None and self._tiers.mask:
                found = self._tiers.reach(found)
                behind = self._tiers.behind(chain, found, scale)
            if prompt.media:
                held = [(facts.begins(weight, prompt.media), mask) for weight, mask in found]
            else:
                held = [(weight * scale, mask) for weight, mask in found]
        exact = prompt.tokens
        if exact is not None and self._reports is not None:
            ratio = exact.count / tokens  # what is believed was estimated by bytes
            held = [(depth * ratio, mask) for depth, mask in held]
            held, behind = self._reports.held(held, exact, behind)
            tokens = float(exact.count)
        loading = NOTHING_SHARED
        if prompt.more:
            held, behind = held_of_all(self.index, held, prompt.more, scale), NOTHING_BEHIND
        elif behind:
            loading = self.prices.all_loading(behind, now)
        adapter = None
        if self._adapters is not None and prompt.model in self._adapters.parents:
            adapter = self._adapters.need(prompt.model, eligible)
            if adapter is not None and adapter.cold and self._peer_heard_at:
                adapter = self._warmed_by_peers(adapter, held)
        return RoutingRequest(
            *(eligible, tokens, held, output, prompt.key, prefix, now, shared),
            *(adapter, loading, behind),
        )

    def _warmed_by_peers(
        self, adapter: AdapterNeed, held: Sequence[tuple[float, int]]
    ) -> AdapterNeed:
        """Other routers do not tell adapters, but prompts: where one that begins like this, for
        this adapter, was sent by them, it was loaded."""
        warm = sum(mask for _, mask in held)
        for slot in slots(adapter.cold & warm):
            if slot not in self._peer_heard_at:
                warm ^= 1 << slot
        return msgspec.structs.replace(adapter, cold=adapter.cold & ~warm)

    def _charge(self, prompt: Prompt, request: RoutingRequest, choice: Choice) -> Placement:
        """Charge the chosen replica's load, and record what it will hold."""
        slot = choice.slot
        now = request.now
        tokens = request.tokens
        mine = available = 0.0
        for depth, mask in request.held:
            if not available and mask & request.eligible:
                available = depth
            if mask >> slot & 1:
                mine = depth
                break
        uncached = float(int(tokens - mine))
        if uncached < 1.0:
            uncached = 1.0
        load = self.loads[slot]
        share = request.behind.get(slot) if request.behind else None
        placement = Placement(
            self,
            prompt,
            slot,
            tokens,
            mine,
            available,
            uncached,
            choice.reason,
            choice.considered,
            now,
            load,
            not load.queued_tokens,
            eligible=request.eligible,
            behind=share,
        )
        if share is not None:
            begins = max(load.loading_until, now)
            placement.load_teaches = self.prices.charge(slot, share, tokens, now)
            placement.loading_ends = load.loading_until
            placement.loading = load.loading_until - begins
        charge(load, uncached, tokens, now)
        if request.adapter is not None:
            self._charge_adapter(placement, request.adapter)
        if not prompt.stream:
            self._placed += 1
            heappush(self._awaiting_prefill, (load.busy_until, self._placed, placement))
        if prompt.chain:
            size = prompt.size
            if uncached >= MIN_SHARED_PREFILL_TOKENS:
                placement.prefill = self._begin_prefill(slot, prompt.chain, size, uncached, tokens)
            self._record(slot, load, prompt.chain, now, tokens / size)
            for each in prompt.more:
                self._record(slot, load, each, now, tokens / size)
        if prompt.tokens is not None and self._reports is not None:
            placement.report = self._reports.sent(prompt.tokens, slot, now)
        if self.listener is not None:
            self.listener.routed(placement)
        return placement

    def _charge_adapter(self, placement: Placement, adapter: AdapterNeed) -> None:
        """Note that its adapter is used there. While it is loaded the replica computes nothing."""
        assert self._adapters is not None
        slot = placement.slot
        placement.adapter = adapter
        if adapter.cold >> slot & 1:
            placement.loads_adapter = True
            placement.load.busy_until += adapter.load_seconds
        self._adapters.sent(slot, placement.prompt.model)

    def adapter_ended(self, placement: Placement) -> None:
        """A request for an adapter has ended."""
        slot, load = placement.slot, placement.load
        if self._adapters is not None and self.loads[slot] is load and not load.left:
            self._adapters.ended(slot, placement.prompt.model)

    def forget(self, slot: int) -> None:
        """A replica's cache is empty."""
        self.index.forget(slot)
        if self._tiers is not None:
            self._tiers.forget(slot)

    def touch(self, placement: Placement, now: float) -> None:
        """Record another use of a request's prompts, at its end."""
        prompt, slot, load = placement.prompt, placement.slot, placement.load
        scale = placement.tokens / prompt.size
        self._record(slot, load, prompt.chain, now, scale)
        for each in prompt.more:
            self._record(slot, load, each, now, scale)

    def _record(self, slot: int, load: Load, chain: Chain, now: float, scale: float) -> None:
        room = self.index.record(slot, chain, now)
        tiers = self._tiers
        if tiers is not None and tiers.mask >> slot & 1:
            tiers.record(slot, chain, now)
        load.cache_used = room.used * scale
        load.cache_tokens = room.capacity * scale

    def _begin_prefill(
        self, slot: int, chain: Chain, size: int, uncached: float, tokens: float
    ) -> Prefill | None:
        """Note the blocks that a replica computes for a request."""
        # A token more, since estimates are rounded to whole ones.
        return self._prefills.begin(slot, chain, (tokens - uncached + 1.0) / tokens * size)

    # What finished requests teach

    def learn_load(self, placement: Placement) -> None:
        """Learn what loading an adapter takes: what its first request waited longer for its first
        token than is usual for as long a prefill. Only where it did not wait for others."""
        if not placement.found_idle_queue or self._adapters is None:
            return
        usual = self._speeds.usual_prefill(placement.slot, placement.uncached)
        self._adapters.saw_load(placement.first_seconds - usual)

    def learn_speeds(
        self,
        placement: Placement,
        now: float,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int,
    ) -> None:
        """Learn how fast a replica prefilled and decoded a request whose first token was seen."""
        slot, load = placement.slot, placement.load
        first_seconds = placement.first_seconds
        if output_tokens >= MIN_OUTPUT_TOKENS:
            stalled = (load.prefilled_tokens - placement.first_prefilled) / load.prefill_rate
            self._speeds.saw_decode(
                slot,
                (placement.first_expected + expected_step(load)) / 2.0,
                (now - placement.sent_at - first_seconds - stalled) / (output_tokens - 1),
            )
        if placement.found_idle_queue and not placement.loads_adapter:
            uncached = placement.uncached
            if prompt_tokens and cached_tokens >= 0:
                uncached = float(prompt_tokens - cached_tokens)
            if placement.behind is not None:
                if placement.load_teaches:
                    rest = self._speeds.expected_prefill(slot, uncached)
                    scale = prompt_tokens / placement.tokens
                    self.prices.learn(
                        slot, placement.behind, scale, cached_tokens, first_seconds, rest
                    )
            else:
                self._speeds.saw_prefill(slot, uncached, first_seconds)

    def learn_model(self, prompt: Prompt, prompt_tokens: int, output_tokens: int) -> None:
        """Learn from the engine's token counts for a request; 0 where it reported none.

        Where engines answer for any name, the model known for longest makes room.
        """
        facts = self.models.get(prompt.model)
        if facts is None:
            if len(self.models) >= MAX_MODELS:
                del self.models[next(iter(self.models))]
            facts = self.models[prompt.model] = ModelFacts()
        if prompt_tokens and prompt.media:
            facts.saw_media(prompt.size, len(prompt.media), prompt_tokens)
        elif prompt_tokens:
            facts.saw_prompt(prompt.size, prompt_tokens)
        if output_tokens:
            facts.saw_answer(output_tokens)

    # Other routers' requests

    def apply_peer_routed(self, request: PeerRequest, now: float) -> None:
        """Charge and record what another router sent to a slot."""
        slot = request.slot
        load = self.loads[slot]
        self._peer_heard_at[slot] = now
        charge(load, request.uncached, request.tokens, now)
        chain = request.own_chain()
        if chain:
            uncached, tokens, size = request.uncached, request.tokens, request.size
            if uncached >= MIN_SHARED_PREFILL_TOKENS:
                request.prefill = self._begin_prefill(slot, chain, size, uncached, tokens)
            self._record(slot, load, chain, now, tokens / size)

    def apply_peer_first_token(self, request: PeerRequest, now: float) -> None:
        """Apply the first token of a request of another router."""
        if request.first:
            return
        request.first = True
        self._end_peer_prefill(request)
        first_token(self.loads[request.slot], request.uncached, now)

    def apply_peer_finished(self, request: PeerRequest, now: float) -> None:
        """Its router reports that the answer has ended. Where it reported no first token before,
        that is counted now."""
        self.apply_peer_first_token(request, now)
        load = self.loads[request.slot]
        finished(load, request.uncached, request.tokens)
        chain = request.own_chain()
        if chain:
            self._record(request.slot, load, chain, now, request.tokens / request.size)

    def apply_peer_failed(self, request: PeerRequest, now: float) -> None:
        """Take a peer's charges back: no answer came, or its router or replica is gone."""
        load = self.loads[request.slot]
        if request.first:
            finished(load, request.uncached, request.tokens)
        else:
            self._end_peer_prefill(request)
            refund(load, request.uncached, request.tokens, now)

    def _end_peer_prefill(self, request: PeerRequest) -> None:
        if request.prefill is not None:
            self._prefills.end(request.prefill)
            request.prefill = None
