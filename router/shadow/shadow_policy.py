"""One policy beside live traffic, with an index and loads of its own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from router.index import ByteIndex
from router.prompt.prompt import Prompt
from router.prompt.spans import SPANS
from router.scheduling.learning import ModelFacts
from router.scheduling.placer import Placement, Placer
from router.shadow.tally import Rolling, Tally
from router.telemetry.ledger import deliverable
from router.types import Load, Policy

log = logging.getLogger(__name__)

_SPEEDS: Final = (
    "prefill_rate",
    "step_seconds",
    "step_request_seconds",
    "step_token_seconds",
    "weight",
    "kv_capacity",
)
# What a shadow does not learn by itself: it is the replica's, whoever chooses it.


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A request as a shadow placed it."""

    placement: Placement
    wait: float
    """Seconds until its prefill was expected to be done."""


class ShadowPolicy:
    """Places what it is told of, and counts what that would have been worth.

    The time of a first token is the model's: when the prefill work that the shadow itself sent to
    a replica would be done, at the speed that the live policy has learned. A request ends when it
    really ends.
    """

    def __init__(self, name: str, policy: Policy, models: dict[str, ModelFacts]) -> None:
        """models: what the live placer has learned, shared with it and only read."""
        self.name = name
        self.policy = policy
        self.rolling = Rolling()
        self.fault = ""
        """Why it places nothing any more: its code failed. Empty while it works."""
        self._index = ByteIndex(SPANS)
        self._loads: list[Load] = []
        self._placer = Placer(self._index, policy, self._loads, learn_speed=False)
        self._placer.models = models  # it adds none: `ended` hands on no tokens
        self._present = 0

    # -- the fleet changes

    def add_replica(self, slot: int, weight: int) -> None:
        """A replica came, with an empty cache of this weight in canonical bytes."""
        while len(self._loads) <= slot:
            self._loads.append(Load(left=True))
        self._loads[slot] = Load()
        self._index.add_replica(slot, weight)
        self._present |= 1 << slot

    def remove_replica(self, slot: int) -> None:
        """A replica left."""
        self._loads[slot].left = True
        self._index.remove_replica(slot)
        self._present &= ~(1 << slot)

    def forget(self, slot: int) -> None:
        """A replica restarted: its cache is empty."""
        self._index.forget(slot)

    def resize(self, slot: int, weight: int) -> None:
        """A replica's cache has another size."""
        self._index.resize(slot, weight)

    def take_speeds(self, live: Sequence[Load]) -> None:
        """Take over what is known of the replicas; live: the loads by slot."""
        for mine, theirs in zip(self._loads, live, strict=False):
            for name in _SPEEDS:
                setattr(mine, name, getattr(theirs, name))

    # -- a request

    def place(self, prompt: Prompt, eligible: int, now: float) -> Placed | None:
        """Place a request that was really placed at `now`; None where that cannot be done."""
        eligible &= self._present
        if not eligible or self.fault:
            return None
        try:
            placement = self._placer.place(prompt, eligible, now)
        except Exception as error:  # a policy may be anybody's code
            self.fault = f"{type(error).__name__}: {error}"
            log.exception("shadow policy %s failed and is off until a restart", self.name)
            return None
        return Placed(placement, placement.load.busy_until - now)

    def ended(
        self,
        placed: Placed,
        now: float,
        live: Placement,
        block_tokens: int,
    ) -> None:
        """The answer ended; live: the request as it was really placed, and what was reported.

        block_tokens: of the replica that the shadow chose.
        """
        prompt_tokens, delivered = live.reported_prompt, live.reported_cached
        placement = placed.placement
        placement.finished(now)
        if prompt_tokens <= 0 or delivered < 0:
            return
        exactly = prompt_tokens / placement.tokens
        predicted = deliverable(placement.held_tokens * exactly, prompt_tokens, block_tokens)
        # An engine also keeps the answer to the turn before, which no index knows. Where the shadow
        # holds what the live replica held, it would have found that too.
        if placement.held_tokens >= live.held_tokens > 0.0 and delivered > predicted:
            predicted = float(delivered)
        rate = placement.load.prefill_rate
        one = Tally(
            1,
            prompt_tokens,
            predicted,
            delivered,
            placed.wait,
            (delivered - predicted) / rate,
            {placement.slot: prompt_tokens - predicted},
        )
        self.rolling.total.add(one)
        self.rolling.slice(now).add(one)


def as_shadow(prompt: Prompt) -> Prompt:
    """A prompt as shadows place it: whether it streams says nothing of when a shadow's replica
    would show its first token, and token ids are for exact mode alone."""
    return msgspec.structs.replace(prompt, stream=False, text=b"", tokens=None)
