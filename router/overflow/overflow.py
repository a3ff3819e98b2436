"""All targets, in the file's order."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from router.overflow.overflow_file import TargetSpec
from router.overflow.target import Target


class Overflow:
    """Who may take a request that the fleet cannot."""

    def __init__(
        self, specs: Iterable[TargetSpec], share: float, failures: int, cooldown: float
    ) -> None:
        """share: of the budgets that is this process's. failures, cooldown (seconds): of the
        breakers."""
        self.targets = [Target(spec, share, failures, cooldown) for spec in specs]
        self.models = frozenset(model for each in self.targets for model in each.spec.models)
        """Those that any target has, by their names here."""

    @property
    def needs_tls(self) -> bool:
        return any(target.endpoint.tls for target in self.targets)

    def find(
        self,
        model: str,
        tokens: tuple[float, float],
        asked: Collection[Target],
        wall: float,
        now: float,
    ) -> Target | None:
        """The first that has the model, was not asked, works, and has the money.

        tokens: of the prompt, and of the answer at most. wall: Unix seconds; now: monotonic ones.
        """
        for target in self.targets:
            if model not in target.spec.models or target in asked:
                continue
            if target.may_take(target.cost(*tokens), wall, now):
                return target
        return None
