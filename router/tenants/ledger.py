"""Where reservations are counted: in this process's memory, or where others count, too
(shared_ledger.py)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from router.tenants.accounts import (
    SLOTS,
    Account,
    Amounts,
    Denial,
    Reservation,
    Stand,
    State,
    exceeded,
    longest,
    part_of,
)

Decision = Reservation | Denial


class Ledger(Protocol):
    """Admits requests within limits, and counts what they use."""

    shadowed: dict[str, int]
    """Name of a limit -> requests that it would have refused, were it not in shadow."""

    def reserve(
        self, accounts: Sequence[Account], need: Amounts
    ) -> Decision | asyncio.Future[Decision]:
        """Admit a request, or not; a future where another process has to be asked."""

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """What an admitted request really used."""

    def stands(self, accounts: Sequence[Account]) -> dict[int, Stand]:
        """Measure -> how its limits by the minute stand, as far as this process knows."""


class MemoryLedger:
    """Counts in memory."""

    def __init__(self) -> None:
        self.shadowed: dict[str, int] = {}

    def reserve(self, accounts: Sequence[Account], need: Amounts) -> Decision:
        """Admit a request, or not."""
        now = time.time()
        for account in accounts:
            if not account.has_room(need, now):
                over = exceeded(accounts, need, now)
                denied = longest(over)
                if denied is not None:
                    return Denial(denied)
                count_shadowed(self.shadowed, over)
                break
        for account in accounts:
            account.reserve(need, now)
        return Reservation(accounts, need, now)

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """What an admitted request really used."""
        if reservation.settled:
            return
        reservation.settled = True
        now = time.time()
        for account in reservation.accounts:
            account.settle(reservation.need, actual, reservation.at, now)

    def stands(self, accounts: Sequence[Account]) -> dict[int, Stand]:
        """How limits by the minute stand."""
        return stands_of(accounts)


def stands_of(accounts: Sequence[Account], share: float = 1.0) -> dict[int, Stand]:
    """Measure -> how its limits by the minute stand, as this process counts.

    share: what of each limit this process may give. What clients are told is what will be admitted.
    """
    now = time.time()
    second = int(now)
    found: dict[int, Stand] = {}
    for account in accounts:
        for measure, cap, minute in account.by_minute:
            if minute.last != second:
                minute.advance(second)
            if share != 1.0:
                cap = part_of(cap, share)
            left = cap - minute.sum
            known = found.get(measure)
            if known is None:
                reset = minute.used_at + SLOTS - now if minute.sum else 0.0
                found[measure] = Stand(cap, left if left > 0 else 0, reset)
            elif left < known.left:
                known.cap, known.left = cap, max(left, 0)
                known.reset = minute.used_at + SLOTS - now
    return found


def count_shadowed(shadowed: dict[str, int], over: Sequence[State]) -> None:
    """Count what limits in shadow would have refused."""
    for state in over:
        name = state.limit.name
        shadowed[name] = shadowed.get(name, 0) + 1
