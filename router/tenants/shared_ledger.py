"""Counting where other processes count, too, so that all of them together keep to a limit: routers
in Redis, the workers of one host in their supervisor (counters.py).

One task talks to the counter, one call at a time. A call carries what was settled since the last
one, and the requests that wait to be admitted. The counter also leases some of a limit to this
process, as much as it used lately and never more than a share of what is left: requests that fit
into the lease are admitted at once. What is on lease counts as used, so the limit holds.

While the counter is away, each process admits by its own count (`limits_without_redis`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from router.state.redis_client import errors
from router.tenants.accounts import (
    IN_FLIGHT,
    MEASURES,
    MINUTE,
    NOTHING,
    Account,
    Amounts,
    Denial,
    Limit,
    Reservation,
    Stand,
    State,
    exceeded,
    longest,
    month_of,
)
from router.tenants.counters import (
    TIMEOUT_S,
    Call,
    Counter,
    GivenAccount,
    Reply,
    Session,
    WaitingRequest,
)
from router.tenants.ledger import Decision, count_shadowed, stands_of

log = logging.getLogger(__name__)

ROUTER_LEASE_S: Final = 5.0
"""Seconds of silence after which what a router held is given back."""
_LEASE_VALID_S: Final = 1.0
"""What is on lease counts in the second after the one that the counter's clock shows."""
_RETRY_S: Final = 0.2
_HEARTBEAT_S: Final = 1.0
_STAND_VALID_S: Final = 2.0
"""How long what the counter said of an account is the best that is known of it."""
_EAGER: Final = 16
"""Where a request had to ask, so many more like it are leased."""
_MAX_REMOTES: Final = 100_000
_MAX_REQUESTS: Final = 256
_MAX_ACCOUNTS: Final = 512
"""Of one call."""


class _Remote:
    """What this process knows of one account that is counted elsewhere."""

    __slots__ = (
        "_limits",
        "account",
        "by_minute",
        "changes",
        "leased",
        "measures",
        "slot",
        "spent",
        "stand",
        "stand_at",
        "told_at",
        "until",
        "used",
        "wanted",
    )

    def __init__(self, account: Account) -> None:
        self.account = account
        self.leased = [0] * MEASURES
        """On lease and not spent."""
        self.until = 0.0
        """Monotonic: when the lease ends."""
        self.slot = 0
        """The second that the lease is counted in."""
        self.spent = [0] * MEASURES
        """Since this account's last call: what to lease follows from it."""
        self.wanted = [0] * MEASURES
        self.used = [0] * MEASURES
        """By requests that are over, not told yet."""
        self.changes: dict[tuple[int, int], int] = {}
        """(measure, second) -> what to change there, not told yet; second 0 is that of leases."""
        self.stand: list[int] = []
        """What counts against each limit, as the counter said last."""
        self.stand_at = self.told_at = 0.0
        self._limits: tuple[Limit, ...] = ()
        self.measures: tuple[int, ...] = ()
        """Those that are limited."""
        self.by_minute: frozenset[int] = frozenset()
        self.look()

    def look(self) -> None:
        """Follow the account's limits, which may have changed."""
        limits = self.account.limits
        if limits is not self._limits:
            self._limits = limits
            self.measures = tuple({limit.measure for limit in limits})
            self.by_minute = frozenset(limit.measure for limit in limits if limit.period == MINUTE)
            self.stand = []

    def covers(self, need: Amounts, now: float) -> bool:
        """Whether a request fits into the lease."""
        if now >= self.until or self.account.limits is not self._limits:
            return False
        leased = self.leased
        return all(need[measure] <= leased[measure] for measure in self.measures)

    def spend(self, need: Amounts) -> None:
        """Take a request out of the lease."""
        leased, spent = self.leased, self.spent
        for measure in self.measures:
            leased[measure] -= need[measure]
            spent[measure] += need[measure]

    def change(self, measure: int, second: int, amount: int) -> None:
        """Count more, or less, in a second of a minute."""
        if amount and measure in self.by_minute:
            key = (measure, second)
            self.changes[key] = self.changes.get(key, 0) + amount

    def prepare(self, now: float, asked: list[int] | None, tick_s: float) -> None:
        """Before a call: end the lease, or have it counted in the coming lease's second; and say
        what to lease. asked: what waits to be admitted; None where nothing does."""
        self.look()
        passed = max(now - self.told_at, tick_s)
        self.told_at = now
        goes_on = asked is None and any(self.spent) and now < self.until
        for measure in self.measures:
            rate = self.spent[measure] * _LEASE_VALID_S / passed
            if asked is not None:
                rate += _EAGER * asked[measure]
            self.wanted[measure] = max(round(rate), self.wanted[measure] // 2)
            self.spent[measure] = 0
            left = self.leased[measure]
            if left:
                self.change(measure, self.slot, -left)
                if goes_on:
                    self.change(measure, 0, left)
                else:
                    self.leased[measure] = 0
        if not goes_on:
            self.until = 0.0

    def given(self, final: bool) -> GivenAccount:
        """The account as it is told, and taken as told. final: nothing is to be leased."""
        account, leased = self.account, self.leased
        limits = [
            (limit.measure, limit.period, limit.cap, int(limit.shadow)) for limit in account.limits
        ]
        changes = [(measure, second, by) for (measure, second), by in self.changes.items() if by]
        wanted = [0] * MEASURES
        if not final:
            for measure in self.measures:
                wanted[measure] = max(self.wanted[measure] - leased[measure], 0)
        given = GivenAccount(
            limits,
            [account.held[measure] + leased[measure] for measure in range(MEASURES)],
            changes,
            self.used,
            wanted,
        )
        self.used = [0] * MEASURES
        self.changes = {}
        return given

    def void(self) -> None:
        """What was on lease is on lease no more: the counter is away."""
        self.leased = [0] * MEASURES
        self.until = 0.0

    @property
    def busy(self) -> bool:
        """There is something to tell soon."""
        return bool(self.changes) or any(self.used) or any(self.leased) or any(self.spent)


class _Waiting(msgspec.Struct, eq=False):
    accounts: Sequence[Account]
    need: Amounts
    decided: asyncio.Future[Decision]


class SharedLedger:
    """Counts together with others. `start`, then `stop`."""

    def __init__(self, counter: Counter, router: str, without: str, routers: int = 1) -> None:
        """router: unique among those that share. without: what to do while the counter is away:
        share, open or closed. routers: how many share, until it says so."""
        self.counter = counter
        self._router = router
        self._without = without
        self._remotes: dict[str, _Remote] = {}
        self._dirty: dict[str, _Remote] = {}
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        """redis-py may lose a cancellation, in an error that closing a connection has."""
        self._sequence = 0
        self._unconfirmed: tuple[list[str], Call] | None = None
        """A call that may have been applied: it is sent again before any other."""
        self._called_at = float("-inf")
        self.shadowed: dict[str, int] = {}
        self.up = False
        """The counter answers."""
        self.answered = asyncio.Event()
        """It has answered once."""
        self.routers = routers
        """Processes that count together, as it said last."""
        self.asked = 0
        """Requests that waited for it."""
        self.leased = 0
        """Requests that were admitted at once."""
        self.alone = 0
        """Requests that were decided without it."""
        self.problem = f"{counter.name} has not answered yet"

    # -- requests

    def reserve(
        self, accounts: Sequence[Account], need: Amounts
    ) -> Decision | asyncio.Future[Decision]:
        """Admit a request out of the lease, or ask the counter."""
        if not self.up:
            return self._decide_alone(accounts, need)
        now = time.monotonic()
        remotes = [self._remote(account) for account in accounts]
        for remote in remotes:
            if not remote.covers(need, now):
                self.asked += 1
                decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
                self._waiting.append(_Waiting(accounts, need, decided))
                self._wake.set()
                return decided
        self.leased += 1
        for remote in remotes:
            remote.spend(need)
            self._dirty[remote.account.name] = remote
        return self._admitted(accounts, need, [remote.slot for remote in remotes])

    def settle(self, reservation: Reservation, actual: Amounts) -> None:
        """What an admitted request really used; told with the next call."""
        if reservation.settled:
            return
        reservation.settled = True
        now, monotonic = time.time(), time.monotonic()
        need, slots = reservation.need, reservation.slots
        if not self._dirty:
            self._wake.set()
        for place, account in enumerate(reservation.accounts):
            account.settle(need, actual, reservation.at, now)
            remote = self._remote(account)
            self._dirty[account.name] = remote
            second = slots[place] if slots else int(reservation.at)
            used = remote.used
            for measure in remote.measures:
                if measure == IN_FLIGHT:
                    if monotonic < remote.until:
                        remote.leased[IN_FLIGHT] += 1
                    continue
                used[measure] += actual[measure]
                remote.change(measure, second, actual[measure] - need[measure])

    def counted(self, account: Account) -> list[int]:
        """What counts against each of an account's limits, as the counter said just now; empty
        where it did not."""
        remote = self._remotes.get(account.name)
        if remote is None or not self.up or remote.stand_at < time.monotonic() - _STAND_VALID_S:
            return []
        # What is on lease here may still be given.
        limits = zip(account.limits, remote.stand, strict=False)
        return [counted - remote.leased[limit.measure] for limit, counted in limits]

    def stands(self, accounts: Sequence[Account]) -> dict[int, Stand]:
        """How limits by the minute stand, as far as this router knows."""
        alone = not self.up and self._without == "share"
        found = stands_of(accounts, 1.0 / self.routers if alone else 1.0)
        if self.up:
            fresh = time.monotonic() - _STAND_VALID_S
            for account in accounts:
                remote = self._remotes.get(account.name)
                if remote is None or remote.stand_at < fresh:
                    continue
                for limit, counted in zip(account.limits, remote.stand, strict=False):
                    stand = found.get(limit.measure)
                    if stand is None or limit.period != MINUTE or limit.cap != stand.cap:
                        continue
                    # What is on lease is not used: this router may still give it.
                    left = max(limit.cap - counted + remote.leased[limit.measure], 0)
                    stand.left = min(stand.left, left)
        return found

    def _remote(self, account: Account) -> _Remote:
        remote = self._remotes.get(account.name)
        if remote is None or remote.account is not account:
            if len(self._remotes) >= _MAX_REMOTES:
                self._forget_idle()
            remote = self._remotes[account.name] = _Remote(account)
        return remote

    def _forget_idle(self) -> None:
        busy = self._dirty
        for name in [
            name
            for name, each in self._remotes.items()
            if name not in busy and not each.busy and not any(each.account.held)
        ]:
            del self._remotes[name]

    def _admitted(
        self, accounts: Sequence[Account], need: Amounts, slots: Sequence[int]
    ) -> Reservation:
        now = time.time()
        for account in accounts:
            account.reserve(need, now)
        return Reservation(accounts, need, now, slots)

    def _decide_alone(self, accounts: Sequence[Account], need: Amounts) -> Decision:
        """Without the counter, by what this process has counted itself."""
        self.alone += 1
        if self._without == "closed":
            return Denial(None)
        now = time.time()
        if self._without == "share":
            over = exceeded(accounts, need, now, 1.0 / self.routers)
            denied = longest(over)
            if denied is not None:
                return Denial(denied)
            count_shadowed(self.shadowed, over)
        for account in accounts:
            remote = self._remote(account)
            self._dirty[account.name] = remote
            for measure in remote.by_minute:
                # Told once the counter is back.
                remote.change(measure, int(now), need[measure])
        return self._admitted(accounts, need, ())

    # -- the counter

    def start(self) -> None:
        """Begin to count."""
        self._task = asyncio.create_task(self._run(), name="limits")

    async def stop(self) -> None:
        """Tell what is not told yet, as far as the counter answers at once, and count no more."""
        if self._task is None:
            return
        self._stopping = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self.up:
            with contextlib.suppress(*errors(), TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    session = await self.counter.open()
                    try:
                        await self._call(session, final=True)
                    finally:
                        await session.close()

    async def _run(self) -> None:
        while not self._stopping:
            try:
                await self._talk()
            except errors() as error:
                self._lost(error)
            await asyncio.sleep(_RETRY_S)

    async def _talk(self) -> None:
        session = await self.counter.open()
        try:
            for name, remote in self._remotes.items():
                if any(remote.account.held):
                    self._dirty[name] = remote  # its lease may have ended
            while not self._stopping:
                await self._call(session)
                if not self.up:
                    log.info(
                        "tenants: limits are counted in %s; processes that share: %d",
                        self.counter.name,
                        self.routers,
                    )
                    self.up, self.problem = True, ""
                    self.answered.set()
                await self._next_turn()
        finally:
            await session.close()

    async def _next_turn(self) -> None:
        """Wait until a request waits, or something is to be told, or the lease must be renewed."""
        while not self._waiting:
            passed = time.monotonic() - self._called_at
            left = (self.counter.tick_s if self._dirty else _HEARTBEAT_S) - passed
            if left <= 0:
                return
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def _call(self, session: Session, *, final: bool = False) -> None:
        if self._unconfirmed is not None:
            await session.call(*self._unconfirmed)
            self._unconfirmed = None
        now, tick_s = time.monotonic(), self.counter.tick_s
        waiting, self._waiting = self._waiting[:_MAX_REQUESTS], self._waiting[_MAX_REQUESTS:]
        asked: dict[str, list[int]] = {}
        for each in waiting:
            for account in each.accounts:
                amounts = asked.setdefault(account.name, [0] * MEASURES)
                for measure in range(MEASURES):
                    amounts[measure] += each.need[measure]
        remotes = {name: self._remotes[name] for name in asked if name in self._remotes}
        if final or now - self._called_at >= tick_s:
            remotes |= dict(list(self._dirty.items())[:_MAX_ACCOUNTS])
            self._called_at = now
        for each in waiting:
            for account in each.accounts:
                remotes.setdefault(account.name, self._remote(account))
        places = {name: place for place, name in enumerate(remotes)}
        for name, remote in remotes.items():
            self._dirty.pop(name, None)
            remote.prepare(now, [0] * MEASURES if final else asked.get(name), tick_s)
        wall = time.time()
        self._sequence += 1
        call = Call(
            self._router,
            0 if final else int(ROUTER_LEASE_S * 1000),
            self._sequence,
            int(wall) // 86_400,
            month_of(wall),
            [remote.given(final) for remote in remotes.values()],
            [
                WaitingRequest([places[a.name] for a in each.accounts], each.need)
                for each in waiting
            ],
        )
        names = list(remotes)
        try:
            reply = await session.call(names, call)
        except errors():
            # Whether it was applied is not known. Its requests are decided here; the rest is told
            # again, under its number.
            call.requests = []
            for given in call.accounts:
                given.wanted = [0] * MEASURES
            self._unconfirmed = (names, call)
            self._dirty |= remotes  # what they hold is told anew
            self._waiting = waiting + self._waiting
            raise
        self._heard(reply, waiting, list(remotes.values()), now)

    def _heard(
        self, reply: Reply, waiting: list[_Waiting], remotes: list[_Remote], asked_at: float
    ) -> None:
        self.routers, second = reply.routers, reply.second
        for remote, (stand, leased) in zip(remotes, reply.told, strict=True):
            remote.stand = stand
            remote.stand_at = time.monotonic()
            for measure, extra in enumerate(leased):
                remote.leased[measure] += extra
            if any(remote.leased):
                remote.slot = second + 1
                remote.until = asked_at + _LEASE_VALID_S
                self._dirty[remote.account.name] = remote
        for each, (refused, over) in zip(waiting, reply.results, strict=True):
            exceeded_limits = [
                _state_of(remotes[place], at, used, wait) for place, at, used, wait in over
            ]
            decision: Decision
            if refused:
                decision = Denial(longest(exceeded_limits))
            else:
                count_shadowed(self.shadowed, exceeded_limits)
                decision = self._admitted(each.accounts, each.need, [second] * len(each.accounts))
            if not each.decided.done():
                each.decided.set_result(decision)
            elif isinstance(decision, Reservation):
                self.settle(decision, NOTHING)  # its client has left

    def _lost(self, error: BaseException) -> None:
        why = str(error) or "no answer in time"  # a timeout has no words of its own
        if self.up or not self.problem:
            log.warning(
                "tenants: %s is away, limits are counted by each process for itself (%s): %s",
                self.counter.name,
                self._without,
                why,
            )
        self.up = False
        self.problem = f"limits are counted without {self.counter.name} ({self._without}): {why}"
        for name, remote in self._remotes.items():
            if any(remote.leased):
                remote.void()
                self._dirty[name] = remote
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.decided.done():
                each.decided.set_result(self._decide_alone(each.accounts, each.need))


def _state_of(remote: _Remote, at: int, used: int, wait_ms: int) -> State:
    """An exceeded limit as the counter tells it."""
    account = remote.account
    limit = account.limits[at]
    wait = wait_ms / 1000 if wait_ms >= 0 else account.wait(limit, 0, time.time())
    return State(account, limit, used, wait)
