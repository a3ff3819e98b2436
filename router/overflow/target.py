"""One target: whether it may take a request now, and what it has cost."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from router.fleet.breaker import Breaker, BreakerState
from router.overflow.overflow_file import TargetSpec
from router.tenants.accounts import DAY, MILLION, MONEY, Account, Amounts, Limit

WHYS: Final = ("no_replica", "late", "coldest", "full", "expired")
"""Why requests go to a target."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where it is, as connections and heads need it."""

    host: str
    port: int
    tls: bool
    prefix: str
    host_header: bytes
    rank_header: bytes = b""


class Target:
    """Its mutable state: the breaker, the day's money, and counters."""

    __slots__ = (
        "account",
        "breaker",
        "budget",
        "endpoint",
        "failed",
        "known",
        "money",
        "requests",
        "spec",
    )

    def __init__(self, spec: TargetSpec, failures: int, cooldown: float) -> None:
        """failures, cooldown (seconds): of the breaker."""
        self.spec = spec
        address = spec.address
        self.endpoint = Endpoint(
            address.host, address.port, address.tls, address.prefix, address.authority.encode()
        )
        self.breaker = Breaker(failures, cooldown)
        self.budget = Limit("money_per_day", MONEY, DAY, max(int(spec.daily_budget * MILLION), 1))
        self.account = Account(f"overflow:{spec.name}", "overflow", ())
        """What this process has spent of it, counted as tenants' limits are."""
        self.account.adopt((self.budget,))
        self.known = 0
        """Millionths spent today by all, as their counter said last; 0 where nobody counts
        together."""
        self.requests = dict.fromkeys(WHYS, 0)
        """Why -> requests sent."""
        self.failed = 0
        """Of these, answered by somebody else in the end."""
        self.money = 0.0
        """Settled by this process, ever."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def condition(self) -> str:
        """closed, open or half_open: its breaker."""
        return str(self.breaker.state)

    @property
    def daily_budget(self) -> float:
        """Money for a UTC day, of all routers that count together."""
        return self.spec.daily_budget

    @property
    def usable(self) -> bool:
        """Its breaker lets requests through."""
        return self.breaker.passes

    def cost(self, prompt: float, output: float) -> float:
        """The money for so many tokens."""
        spec = self.spec
        return (prompt * spec.prompt_price + output * spec.output_price) / MILLION

    def spent(self, wall: float) -> float:
        """Money of today's budget that is settled or reserved. wall: Unix seconds."""
        return max(self.account.used(self.budget, wall), self.known) / MILLION

    def has_money(self, cost: float, wall: float, share: float) -> bool:
        """Whether the budget has room for it, as far as is known here.

        share: of the budget, the part that this process may give by its own count.
        """
        amount = millionths(cost)
        cap = self.budget.cap
        own = self.account.used(self.budget, wall)
        return own + amount <= cap * share and self.known + amount <= cap

    def works(self, now: float) -> bool:
        """Whether its breaker lets a request through. now: monotonic seconds."""
        self.breaker.tick(now)
        return self.breaker.passes

    def begins(self, why: str, now: float) -> None:
        """A request goes there."""
        if self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.admit(now)
        self.requests[why] += 1


def millionths(money: float) -> int:
    """Money as it is counted; never less than it is."""
    return math.ceil(money * MILLION - 1e-6)


def amounts(money: float) -> Amounts:
    """What a request takes of a budget."""
    return (0, 0, 0, 0, millionths(money), 0)
