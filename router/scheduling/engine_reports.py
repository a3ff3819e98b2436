"""What engines report of their KV caches, as far as placing a request needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from router.types import NOTHING_BEHIND, PromptTokens, TierShare


class PendingReport(Protocol):
    """A prompt on its way to a replica whose engine reports what it holds."""

    def finished(self, predicted: float, cached: int, now: float) -> None:
        """The answer ended. predicted: tokens believed to be held there; cached: what the engine
        reports, -1 when it does not."""
        ...

    def failed(self) -> None:
        """The request got no answer, so the replica does not hold its prompt."""
        ...


class EngineReports(Protocol):
    """What engines report of their KV caches, for prompts whose tokens are known (exact mode)."""

    def held(
        self,
        believed: list[tuple[float, int]],
        tokens: PromptTokens,
        behind: Mapping[int, TierShare] = NOTHING_BEHIND,
    ) -> tuple[list[tuple[float, int]], Mapping[int, TierShare]]:
        """(leading tokens held, mask of holders), deepest first, and by slot what of them lies in
        tiers: as reported, and as believed of the replicas whose reports do not count for this
        prompt. behind: what is believed to lie in tiers."""
        ...

    def sent(self, tokens: PromptTokens, slot: int, now: float) -> PendingReport | None:
        """The prompt goes to this slot. None where that replica's reports do not count for it."""
        ...
