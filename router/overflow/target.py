"""One target: whether it may take a request now, and what it has cost."""

from __future__ import annotations

from typing import Final

import msgspec

from router.fleet.breaker import Breaker, BreakerState
from router.overflow.overflow_file import TargetSpec

_MILLION: Final = 1e6
_DAY_S: Final = 86_400.0
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
        "_day",
        "breaker",
        "budget",
        "endpoint",
        "failed",
        "money",
        "requests",
        "spec",
        "spent",
    )

    def __init__(self, spec: TargetSpec, share: float, failures: int, cooldown: float) -> None:
        """share: of the budget that is this process's. failures, cooldown (seconds): of the
        breaker."""
        self.spec = spec
        address = spec.address
        self.endpoint = Endpoint(
            address.host, address.port, address.tls, address.prefix, address.authority.encode()
        )
        self.breaker = Breaker(failures, cooldown)
        self.budget = spec.daily_budget * share
        self.spent = 0.0
        """Today: settled and reserved."""
        self._day = 0
        self.requests = dict.fromkeys(WHYS, 0)
        """Why -> requests sent."""
        self.failed = 0
        """Of these, answered by somebody else in the end."""
        self.money = 0.0
        """Settled, ever."""

    @property
    def name(self) -> str:
        return self.spec.name

    def cost(self, prompt: float, output: float) -> float:
        """The money for so many tokens."""
        spec = self.spec
        return (prompt * spec.prompt_price + output * spec.output_price) / _MILLION

    def may_take(self, cost: float, wall: float, now: float) -> bool:
        """Whether it works and has money left. wall: Unix seconds; now: monotonic ones."""
        self.breaker.tick(now)
        self._turn(wall)
        return self.breaker.passes and self.spent + cost <= self.budget

    def reserve(self, why: str, cost: float, wall: float, now: float) -> int:
        """A request goes there. Returns the UTC day that pays for it."""
        if self.breaker.state is BreakerState.HALF_OPEN:
            self.breaker.admit(now)
        self._turn(wall)
        self.spent += cost
        self.requests[why] += 1
        return self._day

    def settle(self, day: int, reserved: float, cost: float, wall: float) -> None:
        """It is over, and cost this."""
        self._turn(wall)
        self.money += cost
        if day == self._day:
            self.spent += cost - reserved

    def _turn(self, wall: float) -> None:
        day = int(wall // _DAY_S)
        # A clock that is set back gives no second budget.
        if day > self._day:
            self._day = day
            self.spent = 0.0
