"""The reuse ledger: where each prompt token that was not reused was lost.

For every request whose engine reported both its prompt tokens and its cached tokens::

    prompt = delivered + no_holder + load_shed + rounding
             + rendered_differently + stale_index + eviction - surplus

- *no_holder* = prompt - available: no eligible replica was believed to hold these tokens.
- *load_shed* = available - chosen: another replica held more, and the policy preferred this one.
- *rounding* = chosen - predicted: held, but an engine reuses only whole blocks and never a whole
  prompt.
- predicted - delivered, when positive: promised and not there. *eviction* when the replica's
  modelled cache was (nearly) full; *rendered_differently* when the model's template was not tried
  and may have put the prompt together in another way; else *stale_index*.
- *surplus* = delivered - predicted, when positive: there and not promised.

available is cut to [0, prompt], chosen to [0, available], predicted to [0, chosen], all as whole
tokens, so that no gap is negative, the identity holds exactly for sums as for each request, and no
counter made of a difference ever goes down, which Prometheus would take for a restart.
"""

from __future__ import annotations

import msgspec

from router.telemetry.record import Finished


def deliverable(held_tokens: float, prompt_tokens: float, block_tokens: int) -> float:
    """What an engine can reuse of held_tokens: whole blocks, and at most all of the prompt but one
    token.

    vLLM computes at least the last prompt token, since its logits are needed, and matches full
    blocks only (``KVCacheManager.get_computed_blocks``). block_tokens below 2 means no rounding.
    """
    most = prompt_tokens - 1 if prompt_tokens - 1 < held_tokens else held_tokens
    if most <= 0:
        return 0.0
    return most - most % block_tokens if block_tokens > 1 else most


class Ledger(msgspec.Struct, gc=False):
    """Sums of tokens over requests; `unreported` apart, all over the same requests."""

    prompt: int = 0
    """Prompt tokens of the requests in this ledger."""
    available: int = 0
    chosen: int = 0
    predicted: int = 0
    delivered: int = 0
    rendered_differently: int = 0
    stale_index: int = 0
    eviction: int = 0
    surplus: int = 0
    unreported: int = 0
    """Prompt tokens of requests whose engine reported usage but no cached tokens. They are in no
    other sum."""

    @property
    def no_holder(self) -> int:
        return self.prompt - self.available

    @property
    def load_shed(self) -> int:
        return self.available - self.chosen

    @property
    def rounding(self) -> int:
        return self.chosen - self.predicted

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens delivered from cache; None before the first prompt."""
        return self.delivered / self.prompt if self.prompt else None

    def add(self, done: Finished) -> None:
        """Count a request whose prompt_tokens is known."""
        prompt = done.prompt_tokens
        delivered = done.delivered
        if delivered < 0:
            self.unreported += prompt
            return
        # Comparisons rather than min() and max(): this runs for every request.
        available = int(done.available)
        if available > prompt:
            available = prompt
        elif available < 0:
            available = 0
        chosen = int(done.chosen)
        if chosen > available:
            chosen = available
        elif chosen < 0:
            chosen = 0
        predicted = int(done.predicted)
        if predicted > chosen:
            predicted = chosen
        elif predicted < 0:
            predicted = 0
        self.prompt += prompt
        self.available += available
        self.chosen += chosen
        self.predicted += predicted
        self.delivered += delivered
        missing = predicted - delivered
        if missing < 0:
            self.surplus -= missing
        elif done.cache_full:
            self.eviction += missing
        elif done.rendered_differently:
            self.rendered_differently += missing
        else:
            self.stale_index += missing

    def merge(self, other: Ledger) -> None:
        """Add another ledger's sums to this one."""
        self.prompt += other.prompt
        self.available += other.available
        self.chosen += other.chosen
        self.predicted += other.predicted
        self.delivered += other.delivered
        self.rendered_differently += other.rendered_differently
        self.stale_index += other.stale_index
        self.eviction += other.eviction
        self.surplus += other.surplus
        self.unreported += other.unreported


GAPS = (
    "no_holder",
    "load_shed",
    "rounding",
    "rendered_differently",
    "stale_index",
    "eviction",
)
"""The names of the gaps, in the order of a request's way."""
