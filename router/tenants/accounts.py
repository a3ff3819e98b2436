"""What is limited, over which time, and what has been used of it.

An account is a tenant, a key, a user, or a tenant's use of a model; each has limits of its own, and
a request is charged to every account that it belongs to.

A minute is a sliding one, in slots of a second: whatever minute is looked at, no more than the
limit was admitted in it. Days and months are the calendar's, in UTC. What is reserved by requests
in flight counts as used.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

REQUESTS, INPUT, OUTPUT, TOKENS, MONEY, IN_FLIGHT = range(6)
"""What is counted, as places of an `Amounts`. Money is in millionths."""
MEASURES: Final = 6
MILLION: Final = 1_000_000
SLOTS: Final = 60

NOW, MINUTE, DAY, MONTH = range(4)
"""Over which time."""

Amounts = tuple[int, int, int, int, int, int]
"""How much of each measure."""
NOTHING: Final[Amounts] = (0, 0, 0, 0, 0, 0)

FIELDS: Final = {
    "requests_per_minute": (REQUESTS, MINUTE),
    "input_tokens_per_minute": (INPUT, MINUTE),
    "output_tokens_per_minute": (OUTPUT, MINUTE),
    "tokens_per_minute": (TOKENS, MINUTE),
    "concurrent_requests": (IN_FLIGHT, NOW),
    "tokens_per_day": (TOKENS, DAY),
    "tokens_per_month": (TOKENS, MONTH),
    "money_per_day": (MONEY, DAY),
    "money_per_month": (MONEY, MONTH),
}
"""Name of a limit -> (what, over which time)."""


class Limit(msgspec.Struct, frozen=True):
    """One limit of an account."""

    name: str
    """One of FIELDS."""
    measure: int
    period: int
    cap: int
    shadow: bool = False
    """It is counted and told, and refuses nothing."""


class Account(msgspec.Struct, eq=False):
    """Whom requests are charged to. Lives as long as its name is known; its limits may change."""

    name: str
    """Unique: `tenant:acme`, `key:0123456789ab`, `user:acme/jo`, `model:acme/llama`."""
    scope: str
    limits: tuple[Limit, ...]
    minutes: list[SlidingMinute | None] = msgspec.field(default_factory=lambda: [None] * MEASURES)
    """By measure; None where no limit needs it."""
    days: list[int] = msgspec.field(default_factory=lambda: [0] * MEASURES)
    months: list[int] = msgspec.field(default_factory=lambda: [0] * MEASURES)
    turns: float = 0.0
    """When the day is over."""
    month: int = 0
    held: list[int] = msgspec.field(default_factory=lambda: [0] * MEASURES)
    """Reserved by requests in flight."""
    last_used: float = 0.0
    by_minute: tuple[tuple[int, int, SlidingMinute], ...] = ()
    """(measure, cap, minute) of the limits by the minute that are enforced."""
    counted: tuple[tuple[int, SlidingMinute], ...] = ()
    """The minutes that are counted, each once."""
    others: tuple[Limit, ...] = ()
    """The other limits that are enforced."""
    watched: tuple[Limit, ...] = ()
    """Limits in shadow."""
    holding: tuple[int, ...] = ()
    """Measures that are held: those with limits other than by the minute."""
    spending: tuple[int, ...] = ()
    """Measures with limits by the day or month."""

    def adopt(self, limits: tuple[Limit, ...]) -> None:
        """Have these limits from now on; what was used stays."""
        if limits == self.limits:
            return
        self.limits = limits
        minutes = self.minutes
        for limit in limits:
            if limit.period == MINUTE and minutes[limit.measure] is None:
                minutes[limit.measure] = SlidingMinute()
        self.counted = tuple(
            (measure, minute) for measure, minute in enumerate(minutes) if minute is not None
        )
        self.by_minute = tuple(
            (limit.measure, limit.cap, self.minute(limit.measure))
            for limit in limits
            if limit.period == MINUTE and not limit.shadow
        )
        self.others = tuple(each for each in limits if each.period != MINUTE and not each.shadow)
        self.watched = tuple(each for each in limits if each.shadow)
        self.holding = tuple({each.measure for each in limits if each.period != MINUTE})
        self.spending = tuple({each.measure for each in limits if each.period in (DAY, MONTH)})

    def minute(self, measure: int) -> SlidingMinute:
        """The minute of a measure that has a limit by the minute."""
        found = self.minutes[measure]
        assert found is not None
        return found

    def has_room(self, need: Amounts, now: float) -> bool:
        """Whether a request fits into every limit, those in shadow included, as it is.

        The quick answer to most requests; `exceeded` tells what a request is up against.
        """
        second = int(now)
        for measure, cap, minute in self.by_minute:
            if minute.last != second:
                minute.advance(second)
            if minute.sum + need[measure] > cap:
                return False
        held = self.held
        for limit in self.others:
            measure, period = limit.measure, limit.period
            used = held[measure]
            if period != NOW:
                if now >= self.turns:
                    self._turn(now)
                used += self.days[measure] if period == DAY else self.months[measure]
            if used + need[measure] > limit.cap:
                return False
        return not self.watched or all(
            self.used(limit, now) + need[limit.measure] <= limit.cap for limit in self.watched
        )

    def used(self, limit: Limit, now: float) -> int:
        """What counts against a limit. now: seconds since 1970."""
        measure = limit.measure
        if limit.period == MINUTE:
            return self.minute(measure).total(int(now))
        if limit.period == NOW:
            return self.held[measure]
        self._turn(now)
        spent = self.days if limit.period == DAY else self.months
        return spent[measure] + self.held[measure]

    def wait(self, limit: Limit, need: int, now: float, cap: int = 0) -> float:
        """Seconds until so much more may be admitted, as far as is known. cap: another than the
        limit's."""
        if limit.period == MINUTE:
            return self.minute(limit.measure).wait((cap or limit.cap) - need, now)
        return 1.0 if limit.period == NOW else period_end(limit.period, now) - now

    def reserve(self, need: Amounts, now: float) -> None:
        """Count a request that is admitted."""
        second = int(now)
        self.last_used = now
        # `SlidingMinute.add` and `correct` in place: each request does this for every minute.
        at = second % SLOTS
        for measure, minute in self.counted:
            if minute.last != second:
                minute.advance(second)
            amount = need[measure]
            minute.slots[at] += amount
            minute.sum += amount
            minute.used_at = second
        held = self.held
        for measure in self.holding:
            held[measure] += need[measure]

    def settle(self, need: Amounts, actual: Amounts, reserved_at: float, now: float) -> None:
        """Put what a request really used in the place of what it reserved."""
        held = self.held
        for measure in self.holding:
            # As much as was reserved, unless there was no such limit then.
            left = held[measure] - need[measure]
            held[measure] = left if left > 0 else 0
        second, at = int(now), int(reserved_at)
        for measure, minute in self.counted:
            change = actual[measure] - need[measure]
            if change:
                if minute.last != second:
                    minute.advance(second)
                if at > second - SLOTS:
                    minute.slots[at % SLOTS] += change
                    minute.sum += change
                else:
                    minute.correct(at, change, second)
        if self.spending:
            if now >= self.turns:
                self._turn(now)
            for measure in self.spending:
                self.days[measure] += actual[measure]
                self.months[measure] += actual[measure]

    def _turn(self, now: float) -> None:
        if now >= self.turns:
            self.turns = period_end(DAY, now)
            self.days = [0] * MEASURES
            month = month_of(now)
            if month != self.month:
                self.month = month
                self.months = [0] * MEASURES


class SlidingMinute:
    """Amounts of the last sixty seconds, by second."""

    __slots__ = ("last", "slots", "sum", "used_at")

    def __init__(self) -> None:
        self.slots = [0] * SLOTS
        """By second, modulo SLOTS."""
        self.sum = 0
        """All of the minute that ended with `last`."""
        self.last = 0
        self.used_at = 0
        """The last second in which something was counted."""

    def total(self, second: int) -> int:
        """All of the minute that ends with this second."""
        self.advance(second)
        return self.sum

    def add(self, second: int, amount: int) -> None:
        """Count an amount now."""
        if second != self.last:
            self.advance(second)
        self.slots[second % SLOTS] += amount
        self.sum += amount
        self.used_at = second

    def correct(self, at: int, amount: int, second: int) -> None:
        """Change what was counted in an earlier second. Where that is no part of the minute any
        more, more counts now, and less changes nothing."""
        if second != self.last:
            self.advance(second)
        if at <= second - SLOTS:
            if amount <= 0:
                return
            at = second
        self.slots[at % SLOTS] += amount
        self.sum += amount

    def wait(self, room: int, now: float) -> float:
        """Seconds until at most `room` is left."""
        second = int(now)
        self.advance(second)
        total = self.sum
        for age in range(SLOTS - 1, -1, -1):
            if total <= room:
                return max(second - age - 1 + SLOTS - now, 0.0)
            total -= self.slots[(second - age) % SLOTS]
        return second + SLOTS - now

    def advance(self, second: int) -> None:
        """Forget what is no part any more of the minute that ends with this second."""
        passed = second - self.last
        if passed <= 0:
            return
        slots = self.slots
        if passed >= SLOTS:
            self.slots = [0] * SLOTS
            self.sum = 0
        else:
            for at in range(self.last + 1, second + 1):
                self.sum -= slots[at % SLOTS]
                slots[at % SLOTS] = 0
        self.last = second


def month_of(now: float) -> int:
    """Months since year 0, UTC."""
    when = time.gmtime(now)
    return when.tm_year * 12 + when.tm_mon - 1


def period_end(period: int, now: float) -> float:
    """When the day or month is over, seconds since 1970."""
    if period == DAY:
        return float((int(now) // 86_400 + 1) * 86_400)
    when = time.gmtime(now)
    months = when.tm_mon  # of the next month, from 0
    year = when.tm_year + months // 12
    return float(calendar.timegm((year, months % 12 + 1, 1, 0, 0, 0)))


class State(msgspec.Struct, frozen=True):
    """How one limit stands that a request exceeds."""

    account: Account
    limit: Limit
    used: int
    """What counts against it."""
    wait: float = 0.0
    """Seconds until the request may be admitted."""
    cap: int = 0
    """This process's part of the limit; 0 where it may give all of it."""

    @property
    def left(self) -> int:
        """What may still be used, of the part that this process may give."""
        return max((self.cap or self.limit.cap) - self.used, 0)


class Reservation:
    """What an admitted request holds until it is settled. Settled once."""

    __slots__ = ("accounts", "at", "need", "settled", "slots")

    def __init__(
        self, accounts: Sequence[Account], need: Amounts, at: float, slots: Sequence[int] = ()
    ) -> None:
        """at: by this router's clock; slots: for each account the second that Redis counts it
        in."""
        self.accounts = accounts
        self.need = need
        self.at = at
        self.slots = slots
        self.settled = False


class Stand(msgspec.Struct, gc=False):
    """How the limits of one measure by the minute stand, the one with the least left."""

    cap: int
    left: int
    reset: float
    """Seconds until all of it is there again."""


class Denial(msgspec.Struct, frozen=True):
    """A request that is over a limit."""

    over: State | None
    """The limit that is to be waited for longest; None where Redis, which is away, would have to be
    asked."""


def part_of(cap: int, share: float) -> int:
    """What one process may give of a limit, at least 1. share: of 1, its part."""
    return cap if share == 1.0 else max(int(cap * share), 1)


def exceeded(
    accounts: Iterable[Account], need: Amounts, now: float, share: float = 1.0
) -> list[State]:
    """Every limit that a request exceeds, those in shadow included, as this router counts.

    A request larger than a limit waits until nothing of it is used. share: what of each limit this
    router may give.
    """
    over = []
    for account in accounts:
        for limit in account.limits:
            cap = part_of(limit.cap, share)
            amount = min(need[limit.measure], cap)
            used = account.used(limit, now)
            if used + amount > cap:
                wait = account.wait(limit, amount, now, cap)
                over.append(State(account, limit, used, wait, cap))
    return over


def longest(over: Sequence[State]) -> State | None:
    """Of exceeded limits, the enforced one that is to be waited for longest."""
    enforced = [state for state in over if not state.limit.shadow]
    return max(enforced, key=lambda state: state.wait) if enforced else None
