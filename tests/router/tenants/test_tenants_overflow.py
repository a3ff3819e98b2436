"""The day's money of a target, counted alone and with others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from tenants_world import Local, connector, until

from router.overflow.overflow import Overflow
from router.overflow.overflow_file import parse_targets
from router.overflow.target import Target
from router.tenants.accounts import Denial, Reservation
from router.tenants.counters import Call, Counter, Reply, Session
from router.tenants.host_counter import HostCounter
from router.tenants.redis_counter import RedisCounter
from router.tenants.shared_ledger import SharedLedger

DAY = 86_400.0
MILLION = 1e6
FILE = b"""
targets:
  - {name: a, url: 'http://a', key_env: K, models: {m: n}, prompt_price: 1, output_price: 2,
     daily_budget: 10}
"""


class Router:
    """One process with this target, and what it has spent."""

    def __init__(self, shared: SharedLedger | None = None) -> None:
        self.overflow = Overflow(parse_targets(FILE, {"K": "k"}), 3, 1.0, shared)
        self.shared = shared
        (self.target,) = self.overflow.targets

    def may(self, money: float) -> bool:
        """Whether there is so much, as far as is known here."""
        return self.overflow.find("m", (money * MILLION, 0.0), (), 0.0) is not None

    async def reserve(self, money: float) -> Reservation | None:
        if not self.may(money):
            return None
        decision = self.overflow.reserve(self.target, money)
        if asyncio.isfuture(decision):
            decision = await decision
        return None if isinstance(decision, Denial) else decision

    async def spend(self, money: float) -> bool:
        reservation = await self.reserve(money)
        if reservation is not None:
            self.overflow.settle(self.target, reservation, money)
        return reservation is not None

    async def told(self) -> None:
        """All that was settled is counted."""
        assert self.shared is not None
        remote = self.shared._remotes[self.target.account.name]
        await until(lambda: not remote.busy)


class Clock:
    """Wall time, in the test's hands."""

    def __init__(self, now: float) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock(5 * DAY - 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", clock.time)
        patch.setattr("router.overflow.overflow.time", clock.time)
        yield clock


async def test_the_budget_begins_anew_at_utc_midnight(clock: Clock) -> None:
    router = Router()
    assert await router.spend(8.0)
    assert not router.may(3.0)
    held = await router.reserve(1.0)
    clock.now += 1.0
    assert held is not None
    # What is in progress then is the new day's.
    assert router.target.spent(clock.now) == 1.0
    router.overflow.settle(router.target, held, 0.5)
    assert router.target.spent(clock.now) == 0.5
    assert router.target.money == 8.5
    assert router.may(9.5)
    # A clock that is set back gives nothing.
    assert await router.spend(9.0)
    clock.now -= DAY
    assert not router.may(1.0)


def test_the_cost_of_tokens() -> None:
    assert Router().target.cost(1e6, 1e6) == 3.0


async def test_what_is_less_than_counted_is_not_free() -> None:
    router = Router()
    assert await router.spend(1e-9)
    assert router.target.spent(time.time()) == 1e-6


def test_an_open_breaker_lets_one_trial_through() -> None:
    target: Target = Router().target
    target.breaker.failed(0.0, at_once=True)
    assert not target.works(0.5)
    assert target.works(1.5)
    target.begins("late", 1.5)
    assert not target.works(1.6)
    target.breaker.succeeded(2.0)
    assert target.works(2.1)


async def counting(counter: Counter, name: str) -> Router:
    ledger = SharedLedger(counter, name, "open", 2)
    ledger.start()
    await until(lambda: ledger.up)
    return Router(ledger)


@pytest.fixture(params=["redis", "supervisor"])
def counters(request: pytest.FixtureRequest) -> Callable[[], Counter]:
    """Makes a process's line to where all count."""
    if request.param == "redis":
        server = request.getfixturevalue("redis")
        return lambda: RedisCounter(connector(server), "warmroute")
    host = HostCounter(2)
    return lambda: Local(host)


async def test_routers_and_workers_have_one_budget(counters: Callable[[], Counter]) -> None:
    one, other = await counting(counters(), "a"), await counting(counters(), "b")
    assert await one.spend(7.0)
    await one.told()
    assert not await other.spend(4.0)
    assert await other.spend(2.0)
    await other.told()
    assert not await one.spend(2.0)
    # The counter has said what the others spent: nobody has to be asked any more.
    assert one.target.account.used(one.target.budget, time.time()) < 7.5 * MILLION
    assert not one.may(2.0)
    # One that starts anew finds what was spent before.
    again = await counting(counters(), "c")
    assert not await again.spend(2.0)
    for each in (one, other, again):
        assert each.shared is not None
        await each.shared.stop()


class Away:
    """A counter that can be away."""

    name = label = "Redis"
    tick_s = 0.05

    def __init__(self, host: HostCounter) -> None:
        self._local = Local(host)
        self.away = False

    async def open(self) -> Session:
        if self.away:
            raise ConnectionError("nobody listens")
        return self

    async def call(self, names: Sequence[str], call: Call) -> Reply:
        if self.away:
            raise ConnectionError("reset")
        return await self._local.call(names, call)

    async def close(self) -> None:
        pass


async def test_without_redis_each_spends_its_share_at_most_and_says_so() -> None:
    counter = Away(HostCounter(2))
    one, other = await counting(counter, "a"), await counting(counter, "b")
    assert await one.spend(2.0)
    counter.away = True
    for each in (one, other):
        shared = each.shared
        assert shared is not None
        await until(lambda: not shared.up)  # noqa: B023
        # 10 by two routers, even where tenants' limits are off without Redis.
        while await each.spend(1.0):
            pass
        assert each.target.spent(time.time()) == 5.0
        assert "without Redis" in each.overflow.problem
        await shared.stop()


async def test_a_router_that_has_not_heard_of_the_others_spends_nothing() -> None:
    counter = Away(HostCounter(2))
    counter.away = True
    ledger = SharedLedger(counter, "a", "open")
    ledger.start()
    router = Router(ledger)
    assert not await router.spend(1.0)
    counter.away = False
    await until(lambda: ledger.up)
    assert await router.spend(1.0)
    await ledger.stop()
