"""All targets, in the file's order, and the money that they may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from time import time

from router.overflow.overflow_file import TargetSpec
from router.overflow.target import Target, amounts
from router.tenants.accounts import NOTHING, Reservation
from router.tenants.ledger import Decision, Ledger, MemoryLedger
from router.tenants.shared_ledger import SharedLedger


class Overflow:
    """Who may take a request that the fleet cannot.

    A budget is counted as a tenant's limit is: with others where there is a ledger to share. While
    that is away, each router goes by its own count, up to the budget divided by the routers heard
    of last, and spends nothing where it has heard of none.
    """

    def __init__(
        self,
        specs: Iterable[TargetSpec],
        failures: int,
        cooldown: float,
        shared: SharedLedger | None = None,
    ) -> None:
        """failures, cooldown (seconds): of the breakers. shared: None where this process counts for
        itself."""
        self.targets = [Target(spec, failures, cooldown) for spec in specs]
        self.models = frozenset(model for each in self.targets for model in each.spec.models)
        """Those that any target has, by their names here."""
        self._shared = shared
        self._ledger: Ledger = shared or MemoryLedger()

    @property
    def needs_tls(self) -> bool:
        return any(target.endpoint.tls for target in self.targets)

    @property
    def problem(self) -> str:
        """Why the budgets are not counted together; empty where they are, or need not be."""
        return "" if self._shared is None else self._shared.problem

    def find(
        self, model: str, tokens: tuple[float, float], asked: Collection[Target], now: float
    ) -> Target | None:
        """The first that has the model, was not asked, works, and has the money as far as is known
        here.

        tokens: of the prompt, and of the answer at most. now: monotonic seconds.
        """
        share, wall = self._share(), time()
        for target in self.targets:
            if model not in target.spec.models or target in asked or not target.works(now):
                continue
            if self._shared is not None:
                counted = self._shared.counted(target.account)
                target.known = counted[0] if counted else 0
            if target.has_money(target.cost(*tokens), wall, share):
                return target
        return None

    def reserve(self, target: Target, money: float) -> Decision | asyncio.Future[Decision]:
        """Take it out of the target's budget, or not; a future where others have to be asked."""
        return self._ledger.reserve((target.account,), amounts(money))

    def settle(self, target: Target, reservation: Reservation, money: float) -> None:
        """What a request really cost."""
        target.money += money
        self._ledger.settle(reservation, amounts(money) if money else NOTHING)

    def _share(self) -> float:
        """The part of a budget that this process may give by its own count."""
        shared = self._shared
        if shared is None or shared.up:
            return 1.0
        return 1.0 / shared.routers if shared.answered.is_set() else 0.0
