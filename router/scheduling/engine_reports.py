"""What engines report of their KV caches, as far as placing a request needs it."""

from __future__ import annotations

from typing import Protocol

from router.types import PromptTokens


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
        self, believed: list[tuple[float, int]], tokens: PromptTokens
    ) -> list[tuple[float, int]]:
        """(leading tokens held, mask of holders), deepest first: as reported, and as believed of
        the replicas whose reports do not count for this prompt."""
        ...

    def sent(self, tokens: PromptTokens, slot: int, now: float) -> PendingReport | None:
        """The prompt goes to this slot. None where that replica's reports do not count for it."""
        ...
