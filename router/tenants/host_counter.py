"""What the supervisor of several workers does for their limits, in its memory: the same as the
script in Redis (limits_script.py), on the same calls.

A worker that has died holds nothing any more, at once. The supervisor's end is that of the workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from router.tenants.accounts import DAY, MEASURES, MINUTE, MONTH, NOW, SLOTS, Amounts
from router.tenants.counters import Call, GivenAccount, Reply

MAX_ACCOUNTS: Final = 250_000
"""Beyond it the accounts that were asked for longest ago are forgotten."""
_LOOK_EVERY_S: Final = 60
_KEPT_S: Final = (120, 120, 2 * 86_400, 35 * 86_400)
"""By the longest period of its limits: seconds for which an account is kept that is not used."""
_LEAST_LEASE: Final = 8
"""A few are not worth a lease: another worker might be refused for them."""
_KEEPS_FREE: Final = 5
"""Nothing is leased where less than this part of a limit is left: 1 in so many."""


class _Minute:
    """Amounts by second. The second after the present one is that of leases."""

    __slots__ = ("slots", "sum")

    def __init__(self) -> None:
        self.slots: dict[int, int] = {}
        self.sum = 0

    def forget(self, now: int) -> None:
        slots = self.slots
        old = [second for second in slots if second <= now - SLOTS]
        for second in old:
            self.sum -= slots.pop(second)

    def add(self, second: int, amount: int) -> None:
        self.slots[second] = self.slots.get(second, 0) + amount
        self.sum += amount

    def wait(self, room: int, now: int, ms: int) -> int:
        """Milliseconds until at most `room` is left."""
        total = self.sum
        for second in range(now - SLOTS + 1, now + 2):
            if total <= room:
                return max((second + SLOTS - 1) * 1000 - ms, 0)
            total -= self.slots.get(second, 0)
        return (now + SLOTS + 1) * 1000 - ms


class _Counted:
    """One account."""

    __slots__ = (
        "by_minute",
        "day",
        "days",
        "forget_at",
        "held",
        "holding",
        "limits",
        "minutes",
        "month",
        "months",
        "periods",
        "total_held",
    )

    def __init__(self) -> None:
        self.minutes: dict[int, _Minute] = {}
        """By measure."""
        self.held: dict[str, list[int]] = {}
        """Worker -> by measure: requests in flight, and what it has on lease."""
        self.total_held = [0] * MEASURES
        """Of this call."""
        self.day = self.month = 0
        self.days = [0] * MEASURES
        self.months = [0] * MEASURES
        self.forget_at = 0
        self.limits: list[tuple[int, int, int, int]] = []
        self.periods: set[tuple[int, int]] = set()
        """(measure, period) of the limits."""
        self.by_minute: frozenset[int] = frozenset()
        """Measures with a limit by the minute."""
        self.holding: frozenset[int] = frozenset()
        """Measures with another."""

    def begin(self, given: GivenAccount, call: Call, now: int, alive: Sequence[str]) -> None:
        """A call: take up its limits, and forget what is over."""
        if given.limits != self.limits:
            self.limits = given.limits
            self.periods = {(measure, period) for measure, period, _, _ in given.limits}
            self.by_minute = frozenset(each for each, period in self.periods if period == MINUTE)
            self.holding = frozenset(each for each, period in self.periods if period != MINUTE)
        longest = max((period for _, period in self.periods), default=NOW)
        self.forget_at = now + _KEPT_S[longest]
        for minute in self.minutes.values():
            minute.forget(now)
        if self.day != call.day:
            self.day, self.days = call.day, [0] * MEASURES
        if self.month != call.month:
            self.month, self.months = call.month, [0] * MEASURES
        for name in [name for name in self.held if name not in alive]:
            del self.held[name]
        holding = self.holding
        own = [held if measure in holding else 0 for measure, held in enumerate(given.held)]
        self.held[call.router] = own
        self.total_held = [sum(each) for each in zip(*self.held.values(), strict=True)]

    def settle(self, given: GivenAccount, now: int) -> None:
        """Count what a worker tells of requests that were admitted before."""
        for measure, second, amount in given.changes:
            at = now + 1 if second == 0 else second
            if at <= now - SLOTS and amount > 0:
                # What was reserved over a minute ago is gone; what came on top of it counts now.
                at = now
            if at > now - SLOTS:
                self._count(measure, at, amount)
        for measure, used in enumerate(given.used):
            if used and (measure, DAY) in self.periods:
                self.days[measure] += used
            if used and (measure, MONTH) in self.periods:
                self.months[measure] += used

    def used(self, measure: int, period: int) -> int:
        """What counts against a limit."""
        if period == MINUTE:
            minute = self.minutes.get(measure)
            return 0 if minute is None else minute.sum
        held = self.total_held[measure]
        if period == NOW:
            return held
        return held + (self.days[measure] if period == DAY else self.months[measure])

    def take(self, router: str, measure: int, second: int, amount: int) -> None:
        """Give so much to a worker."""
        if measure in self.by_minute:
            self._count(measure, second, amount)
        if measure in self.holding:
            self.held[router][measure] += amount
            self.total_held[measure] += amount

    def wait(self, measure: int, room: int, now: int, ms: int) -> int:
        """Milliseconds until at most `room` of a minute is left."""
        minute = self.minutes.get(measure)
        return 0 if minute is None else minute.wait(room, now, ms)

    def leases(self, wanted: int, measure: int, routers: int) -> int:
        """How much of what a worker wants it gets on lease."""
        extra = wanted
        for limited, period, cap, shadow in self.limits:
            if limited == measure and not shadow and extra:
                free = cap - self.used(measure, period)
                if free * _KEEPS_FREE < cap:
                    return 0
                extra = min(extra, free // (2 * routers))
        return extra if extra >= _LEAST_LEASE else 0

    def _count(self, measure: int, second: int, amount: int) -> None:
        if amount:
            minute = self.minutes.get(measure)
            if minute is None:
                minute = self.minutes[measure] = _Minute()
            minute.add(second, amount)


class HostCounter:
    """Counts for all workers."""

    def __init__(self, workers: int = 1, clock: Callable[[], float] = time.time) -> None:
        """workers: how many there are to be: one that has not called yet has its share, too. clock:
        seconds since 1970."""
        self._least = workers
        self._clock = clock
        self._accounts: dict[str, _Counted] = {}
        """The one asked for longest ago first."""
        self._workers: dict[str, tuple[int, int]] = {}
        """Worker -> when it is taken for dead, in milliseconds since 1970; its last call."""
        self._looked = 0

    def gone(self, worker: str) -> None:
        """A worker has died: what it held is free."""
        self._workers.pop(worker, None)

    def call(self, names: Sequence[str], call: Call) -> Reply:
        """Apply what a worker settled, admit the requests that wait, then lease."""
        ms = int(self._clock() * 1000)
        now, worker = ms // 1000, call.router
        sequence = self._workers.get(worker, (0, 0))[1]
        for name in [name for name, (until, _) in self._workers.items() if until <= ms]:
            del self._workers[name]
        self._workers[worker] = (ms + call.lease, call.seq)
        self._forget(now)
        accounts = []
        for name, given in zip(names, call.accounts, strict=True):
            account = self._accounts.pop(name, None) or _Counted()
            self._accounts[name] = account
            account.begin(given, call, now, list(self._workers))
            if call.seq > sequence:
                account.settle(given, now)
            accounts.append(account)
        results = [
            self._admit(
                worker, [(at, accounts[at]) for at in request.accounts], request.need, now, ms
            )
            for request in call.requests
        ]
        told = []
        routers = max(len(self._workers), self._least)
        for account, given in zip(accounts, call.accounts, strict=True):
            leased = [0] * MEASURES
            for measure, wanted in enumerate(given.wanted):
                extra = account.leases(wanted, measure, routers) if wanted else 0
                if extra:
                    account.take(worker, measure, now + 1, extra)
                    leased[measure] = extra
            stand = [account.used(measure, period) for measure, period, _, _ in account.limits]
            told.append((stand, leased))
        return Reply(now, routers, results, told)

    def _admit(
        self,
        worker: str,
        accounts: Sequence[tuple[int, _Counted]],
        need: Amounts,
        now: int,
        ms: int,
    ) -> tuple[int, list[tuple[int, int, int, int]]]:
        over, refused = [], 0
        for place, account in accounts:
            for at, (measure, period, cap, shadow) in enumerate(account.limits):
                amount, used = min(need[measure], cap), account.used(measure, period)
                if used + amount > cap:
                    minute = period == MINUTE
                    wait = account.wait(measure, cap - amount, now, ms) if minute else -1
                    over.append((place, at, used, wait))
                    refused |= not shadow
        if not refused:
            for _, account in accounts:
                for measure, amount in enumerate(need):
                    account.take(worker, measure, now, amount)
        return int(refused), over

    def _forget(self, now: int) -> None:
        accounts = self._accounts
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            for name in [name for name, each in accounts.items() if each.forget_at <= now]:
                del accounts[name]
        while len(accounts) > MAX_ACCOUNTS:
            del accounts[next(iter(accounts))]
