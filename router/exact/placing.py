"""Placing requests whose tokens are known."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.exact.mode import ExactMode, ExactPrompt, TokenisedChain
from router.kv_events.token_index import PendingPrompt
from router.scheduling.placer import Placement, Placer
from router.types import Chain, Choice, Load, Policy, PrefixIndex, RoutingRequest


class ExactPlacement(msgspec.Struct, frozen=True):
    """What a placement keeps of exact mode."""

    prompt: ExactPrompt
    pending: PendingPrompt


class ExactPlacer(Placer):
    """A Placer that goes by what engines told, where that is known, for requests tokenised here.

    The byte-block index is kept up for these too: it is what is left when events fail.
    """

    def __init__(
        self,
        exact: ExactMode,
        index: PrefixIndex,
        policy: Policy,
        loads: Sequence[Load],
        *,
        learn_speed: bool = True,
        bytes_per_token: float = 4.0,
    ) -> None:
        super().__init__(
            index, policy, loads, learn_speed=learn_speed, bytes_per_token=bytes_per_token
        )
        self._exact = exact

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
        ask = super()._ask(chain, size, model, eligible, key, now, output_limit)
        if isinstance(chain, TokenisedChain):
            count = float(chain.prompt.count)
            scale = count / ask.tokens  # what is believed was estimated by bytes
            believed = [(tokens * scale, mask) for tokens, mask in ask.held]
            ask.held = self._exact.held(believed, chain.prompt)
            ask.tokens = count
        return ask

    def _book(
        self, ask: RoutingRequest, choice: Choice, chain: Chain, size: int, model: str, stream: bool
    ) -> Placement:
        placement = super()._book(ask, choice, chain, size, model, stream)
        if isinstance(chain, TokenisedChain):
            pending = self._exact.sent(chain.prompt, placement.slot, ask.now)
            if pending is not None:
                placement.exact = ExactPlacement(chain.prompt, pending)
        return placement

    def finished(
        self,
        placement: Placement,
        now: float,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
        cached_tokens: int = -1,
    ) -> None:
        """As Placer.finished."""
        super().finished(placement, now, prompt_tokens, output_tokens, cached_tokens)
        sent = placement.exact
        if isinstance(sent, ExactPlacement):
            placement.exact = None
            self._exact.finished(
                sent.prompt, sent.pending, placement.held_tokens, cached_tokens, now
            )

    def failed(self, placement: Placement, now: float) -> None:
        """As Placer.failed."""
        super().failed(placement, now)
        sent = placement.exact
        if isinstance(sent, ExactPlacement):
            placement.exact = None
            self._exact.failed(sent.pending)
