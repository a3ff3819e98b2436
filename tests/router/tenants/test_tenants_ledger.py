"""Limits in memory and in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest
from redis_server import RedisServer
from tenants_world import Local, Router, account, connector, need, until

from router.tenants.accounts import Denial, Reservation, SlidingMinute, period_end
from router.tenants.counters import Call, Counter, Reply
from router.tenants.host_counter import HostCounter
from router.tenants.ledger import MemoryLedger
from router.tenants.redis_counter import RedisCounter
from router.tenants.shared_ledger import SharedLedger

MakeRouter = Callable[..., Awaitable[Router]]


@contextlib.asynccontextmanager
async def making(counter: Callable[[], Counter]) -> AsyncIterator[MakeRouter]:
    made: list[Router] = []

    async def make(name: str, without_redis: str = "share") -> Router:
        made.append(Router(counter(), name, without_redis))
        return await made[-1].start()

    yield make
    for each in made:
        await each.ledger.stop()


@pytest.fixture
async def router(redis: RedisServer) -> AsyncIterator[MakeRouter]:
    async with making(lambda: RedisCounter(connector(redis), "warmroute")) as make:
        yield make


@pytest.fixture(params=["Redis", "supervisor"])
async def counting(request: pytest.FixtureRequest) -> AsyncIterator[MakeRouter]:
    """Makes routers that count in Redis, or workers that count in their supervisor."""
    if request.param == "Redis":
        redis = request.getfixturevalue("redis")
        async with making(lambda: RedisCounter(connector(redis), "warmroute")) as make:
            yield make
    else:
        supervisor = HostCounter()
        async with making(lambda: Local(supervisor)) as make:
            yield make


def test_a_sliding_minute_holds_sixty_seconds() -> None:
    minute = SlidingMinute()
    minute.add(1000, 5)
    minute.add(1030, 3)
    assert minute.total(1059) == 8
    assert minute.total(1060) == 3
    assert minute.total(1090) == 0


def test_the_wait_of_a_minute_is_right() -> None:
    minute = SlidingMinute()
    minute.add(1000, 5)
    minute.add(1030, 3)
    assert minute.wait(8, 1040.5) == 0
    assert minute.wait(3, 1040.5) == pytest.approx(19.5)
    assert minute.wait(2, 1040.5) == pytest.approx(49.5)
    assert minute.total(1060) == 3


def test_a_correction_of_what_is_gone_counts_only_when_it_is_more() -> None:
    minute = SlidingMinute()
    minute.add(1000, 5)
    minute.correct(1000, -5, 1070)
    assert minute.total(1070) == 0
    minute.correct(1000, 7, 1070)
    assert minute.total(1070) == 7


def test_a_day_and_a_month_end_in_utc() -> None:
    assert period_end(2, 86_400 * 3 + 5) == 86_400 * 4
    assert time.gmtime(period_end(3, 1_800_000_000))[:6] == (2027, 2, 1, 0, 0, 0)
    assert time.gmtime(period_end(3, 1_798_000_000))[:6] == (2027, 1, 1, 0, 0, 0)


def test_memory_admits_up_to_a_limit_and_says_when_again() -> None:
    ledger, acme = MemoryLedger(), account(requests_per_minute=3)
    for _ in range(3):
        assert isinstance(ledger.reserve([acme], need()), Reservation)
    denied = ledger.reserve([acme], need())
    assert isinstance(denied, Denial)
    assert denied.over is not None
    assert denied.over.limit.name == "requests_per_minute"
    assert 58 < denied.over.wait <= 60


def test_a_request_larger_than_a_limit_waits_until_nothing_is_used() -> None:
    ledger, acme = MemoryLedger(), account(tokens_per_minute=100)
    first = ledger.reserve([acme], need(500))
    assert isinstance(first, Reservation)
    assert isinstance(ledger.reserve([acme], need(1)), Denial)
    ledger.settle(first, need(10))
    assert isinstance(ledger.reserve([acme], need(90)), Reservation)


def test_settling_gives_back_what_was_not_used() -> None:
    ledger, acme = MemoryLedger(), account(tokens_per_day=100, concurrent_requests=1)
    first = ledger.reserve([acme], need(20, 80))
    assert isinstance(first, Reservation)
    assert isinstance(ledger.reserve([acme], need(1)), Denial)
    ledger.settle(first, (1, 20, 10, 30, 0, 0))
    ledger.settle(first, (1, 20, 10, 30, 0, 0))
    second = ledger.reserve([acme], need(70))
    assert isinstance(second, Reservation)
    ledger.settle(second, (*need(70)[:5], 0))
    denied = ledger.reserve([acme], need(1))
    assert isinstance(denied, Denial)
    assert denied.over is not None
    assert denied.over.limit.name == "tokens_per_day"


def test_a_limit_in_shadow_refuses_nothing_and_is_counted() -> None:
    ledger = MemoryLedger()
    acme = account(shadow=("requests_per_minute",), requests_per_minute=1, concurrent_requests=9)
    assert isinstance(ledger.reserve([acme], need()), Reservation)
    assert isinstance(ledger.reserve([acme], need()), Reservation)
    assert ledger.shadowed == {"requests_per_minute": 1}


def test_every_account_of_a_request_has_to_have_room() -> None:
    ledger = MemoryLedger()
    acme, jo = account(requests_per_minute=5), account("user:acme/jo", requests_per_minute=1)
    assert isinstance(ledger.reserve([acme, jo], need()), Reservation)
    assert isinstance(ledger.reserve([acme, jo], need()), Denial)
    for _ in range(4):
        assert isinstance(ledger.reserve([acme], need()), Reservation)
    assert isinstance(ledger.reserve([acme], need()), Denial)


# -- together with others: in Redis, or in the supervisor of several workers


async def test_many_routers_together_keep_to_a_limit(counting: MakeRouter) -> None:
    """A hundred clients at three routers; 30% of their answers are broken off."""
    routers = [await counting(name) for name in "abc"]
    accounts = [account(tokens_per_minute=10_000) for _ in routers]
    rng = random.Random(1)
    admitted = 0

    async def client(number: int) -> None:
        nonlocal admitted
        one, acme = routers[number % 3], accounts[number % 3]
        for _ in range(20):
            decision = await one.reserve(need(40, 60), acme)
            if isinstance(decision, Denial):
                await asyncio.sleep(0.01)
                continue
            await asyncio.sleep(rng.random() * 0.02)
            output = 20 if rng.random() < 0.3 else 60
            admitted += 40 + output
            one.ledger.settle(decision, (1, 40, output, 40 + output, 0, 0))

    await asyncio.gather(*(client(number) for number in range(100)))
    assert 9_000 <= admitted <= 10_000


async def test_requests_far_from_a_limit_wait_for_nothing(counting: MakeRouter) -> None:
    one = await counting("a")
    acme = account(requests_per_minute=1_000_000, tokens_per_minute=100_000_000)
    first = await one.reserve(need(100, 100), acme)
    assert isinstance(first, Reservation)
    for _ in range(4):
        decision = one.ledger.reserve([acme], need(100, 100))
        assert isinstance(decision, Reservation), "it had to ask"
    assert one.ledger.asked == 1


async def test_what_is_leased_and_not_used_comes_back(counting: MakeRouter) -> None:
    one, other = await counting("a"), await counting("b")
    mine, theirs = account(requests_per_minute=100), account(requests_per_minute=100)
    for _ in range(10):
        assert isinstance(await one.reserve(need(), mine), Reservation)
    granted, deadline = 0, time.monotonic() + 10
    while granted < 90:
        granted += isinstance(await other.reserve(need(), theirs), Reservation)
        assert time.monotonic() < deadline
    assert isinstance(await other.reserve(need(), theirs), Denial)


async def test_a_crashed_router_holds_nothing_after_its_lease(
    counting: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenants.shared_ledger.ROUTER_LEASE_S", 1.0)
    one, other = await counting("a"), await counting("b")
    limits = {"concurrent_requests": 10, "tokens_per_day": 1000}
    mine, theirs = account(**limits), account(**limits)
    for _ in range(10):
        assert isinstance(await one.reserve(need(100), mine), Reservation)
    assert isinstance(await other.reserve(need(100), theirs), Denial)
    one.crash()
    began = time.monotonic()
    while isinstance(await other.reserve(need(100), theirs), Denial):
        assert time.monotonic() - began < 5
        await asyncio.sleep(0.05)
    for _ in range(9):
        assert isinstance(await other.reserve(need(100), theirs), Reservation)
    assert isinstance(await other.reserve(need(100), theirs), Denial)


async def test_concurrency_is_given_back_when_requests_end(counting: MakeRouter) -> None:
    one, other = await counting("a"), await counting("b")
    mine, theirs = account(concurrent_requests=4), account(concurrent_requests=4)
    held = [await one.reserve(need(), mine) for _ in range(4)]
    assert isinstance(await other.reserve(need(), theirs), Denial)
    for each in held:
        assert isinstance(each, Reservation)
        one.ledger.settle(each, (1, 0, 0, 0, 0, 0))
    deadline = time.monotonic() + 5
    while isinstance(await other.reserve(need(), theirs), Denial):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_denial_says_when_there_is_room_again(counting: MakeRouter) -> None:
    one = await counting("a")
    acme = account(tokens_per_minute=100)
    assert isinstance(await one.reserve(need(100), acme), Reservation)
    denied = await one.reserve(need(10), acme)
    assert isinstance(denied, Denial)
    assert denied.over is not None
    assert denied.over.used == 100
    assert 57 < denied.over.wait <= 60


@pytest.mark.parametrize(("without", "expected"), [("share", 50), ("open", 200), ("closed", 0)])
async def test_without_redis_the_setting_decides(
    redis: RedisServer, router: MakeRouter, without: str, expected: int
) -> None:
    one, other = await router("a", without), await router("b", without)
    await until(lambda: one.ledger.routers == 2 and other.ledger.routers == 2)
    redis.kill()
    await until(lambda: not one.ledger.up)
    acme = account(requests_per_minute=100)
    decisions = [await one.reserve(need(), acme) for _ in range(200)]
    assert sum(isinstance(each, Reservation) for each in decisions) == expected
    assert without in one.ledger.problem
    if without == "share":
        stand = one.ledger.stands([acme])[0]
        assert (stand.cap, stand.left) == (50, 0)
    if without == "closed":
        assert decisions[0].over is None  # type: ignore[union-attr]


async def test_a_counter_that_does_not_answer_is_told_in_words() -> None:
    class Hangs(Local):
        async def call(self, names: Sequence[str], call: Call) -> Reply:
            raise TimeoutError

    ledger = SharedLedger(Hangs(HostCounter()), "a", "share")
    ledger.start()
    try:
        await until(lambda: ledger.problem.endswith("no answer in time"))
    finally:
        await ledger.stop()


async def test_a_frozen_redis_loses_no_request(redis: RedisServer, router: MakeRouter) -> None:
    one = await router("a")
    acme = account(requests_per_minute=10)
    redis.signal(signal.SIGSTOP)
    began = time.monotonic()
    decisions = await asyncio.gather(*(one.reserve(need(), acme) for _ in range(20)))
    assert time.monotonic() - began < 5
    assert sum(isinstance(each, Reservation) for each in decisions) == 10
    redis.signal(signal.SIGCONT)
    await until(lambda: one.ledger.up)
    assert isinstance(await one.reserve(need(), acme), Denial)


async def test_redis_hears_what_was_used_while_it_was_away(
    redis: RedisServer, router: MakeRouter
) -> None:
    one, other = await router("a"), await router("b")
    redis.signal(signal.SIGSTOP)
    await until(lambda: not one.ledger.up, 30)
    limits = {"tokens_per_day": 1000, "requests_per_minute": 100}
    mine, theirs = account(**limits), account(**limits)
    for _ in range(3):
        held = await one.reserve(need(100), mine)
        assert isinstance(held, Reservation)
        one.ledger.settle(held, (*need(100)[:5], 0))
    redis.signal(signal.SIGCONT)
    await until(lambda: one.ledger.up and other.ledger.up)
    await until(lambda: not one.ledger._dirty)
    admitted = 0
    while isinstance(await other.reserve(need(100), theirs), Reservation):
        admitted += 1
    assert admitted == 7


async def test_a_router_that_stops_leaves_nothing_behind(counting: MakeRouter) -> None:
    one, other = await counting("a"), await counting("b")
    limits = {"concurrent_requests": 4, "requests_per_minute": 10}
    mine, theirs = account(**limits), account(**limits)
    held = await one.reserve(need(), mine)
    assert isinstance(held, Reservation)
    one.ledger.settle(held, (1, 0, 0, 0, 0, 0))
    await one.ledger.stop()
    for _ in range(4):
        assert isinstance(await other.reserve(need(), theirs), Reservation)


async def test_it_stops_while_requests_wait(redis: RedisServer) -> None:
    one = await Router(RedisCounter(connector(redis), "warmroute"), "a").start()
    acme = account(requests_per_minute=10)
    for _ in range(5):
        waiting = one.ledger.reserve([acme], need())
        await asyncio.sleep(0.3)  # so that its tick is due when it is stopped
        one.ledger.reserve([acme], need())
    async with asyncio.timeout(10):
        await one.ledger.stop()
    assert not isinstance(waiting, Denial)
