"""The supervisor counts as Redis does."""

from __future__ import annotations

import random
import time

from redis_server import RedisServer
from tenants_world import connector

from router.tenants.accounts import MEASURES, MINUTE, NOW
from router.tenants.counters import Call, GivenAccount, Reply, WaitingRequest
from router.tenants.host_counter import HostCounter
from router.tenants.redis_counter import RedisCounter

LIMITS = [
    [(0, MINUTE, 60, 0), (3, MINUTE, 4000, 0), (5, NOW, 12, 0)],
    [(3, 2, 9000, 0), (3, 3, 20_000, 0), (0, MINUTE, 100, 1)],
    [(1, MINUTE, 3000, 0), (2, MINUTE, 3000, 1), (4, 2, 700, 0)],
]


def a_call(chance: random.Random, router: str, seq: int, now: int) -> tuple[list[str], Call]:
    """One of any kind, as routers make them and worse."""
    places = chance.sample(range(len(LIMITS)), chance.randint(1, len(LIMITS)))
    given = [
        GivenAccount(
            LIMITS[place],
            [chance.choice((0, 0, 3, 200)) for _ in range(MEASURES)],
            [
                (chance.choice((0, 1, 3)), chance.choice((0, now, now - 30, now - 61, now - 90)),
                 chance.randint(-50, 90))
                for _ in range(chance.randint(0, 3))
            ],
            [chance.choice((0, 0, 25)) for _ in range(MEASURES)],
            [chance.choice((0, 0, 5, 40, 9000)) for _ in range(MEASURES)],
        )
        for place in places
    ]  # fmt: skip
    waiting = []
    for _ in range(chance.randint(0, 4)):
        prompt, output = chance.randint(0, 400), chance.randint(0, 400)
        of = chance.sample(range(len(places)), chance.randint(1, len(places)))
        waiting.append(WaitingRequest(of, (1, prompt, output, prompt + output, prompt // 4, 1)))
    lease = chance.choice((60_000, 60_000, 60_000, 0))
    names = [f"tenant:{place}" for place in places]
    return names, Call(router, lease, seq, now // 86_400, now // 2_592_000, given, waiting)


def without_waits(reply: Reply) -> object:
    """Redis' clock goes on within a second."""
    results = [(refused, [tuple(each[:3]) for each in over]) for refused, over in reply.results]
    return [reply.routers, results, [(list(stand), list(leased)) for stand, leased in reply.told]]


async def test_the_supervisor_answers_every_call_as_redis_does(redis: RedisServer) -> None:
    clock = [0.0]
    counter, session = HostCounter(clock=lambda: clock[0]), await RedisCounter(
        connector(redis), "warmroute"
    ).open()  # fmt: skip
    chance = random.Random(5)
    refused = leased = 0
    try:
        for seq in range(1, 600):
            names, call = a_call(chance, chance.choice("abc"), seq, int(time.time()))
            if chance.random() < 0.1:
                call.seq = 1  # heard before
            theirs = await session.call(names, call)
            # The second after the one that Redis was in is over by no answer.
            clock[0] = theirs.second + 0.5
            ours = counter.call(names, call)
            assert without_waits(ours) == without_waits(theirs), (seq, names, call)
            for (_, mine), (_, others) in zip(ours.results, theirs.results, strict=True):
                for (*_, wait), (*_, other) in zip(mine, others, strict=True):
                    assert abs(wait - other) <= 1000
            refused += sum(each for each, _ in ours.results)
            leased += sum(sum(each) for _, each in ours.told)
    finally:
        await session.close()
    assert refused > 50
    assert leased > 1000


def test_what_a_dead_worker_held_is_free_at_once() -> None:
    counter = HostCounter()
    limits = [(5, NOW, 2, 0)]

    def admitted(worker: str) -> bool:
        nothing = [0] * MEASURES
        given = GivenAccount(limits, nothing, [], nothing, nothing)
        waiting = [WaitingRequest([0], (1, 0, 0, 0, 0, 2))]
        call = Call(worker, 5000, 1, 1, 1, [given], waiting)
        return counter.call(["tenant:acme"], call).results[0][0] == 0

    assert admitted("one")
    assert not admitted("two")
    counter.gone("one")
    assert admitted("two")


def test_accounts_that_nobody_uses_are_forgotten() -> None:
    clock = [1_800_000_000.0]
    counter = HostCounter(clock=lambda: clock[0])
    nothing = [0] * MEASURES
    for number in range(1000):
        given = GivenAccount([(0, MINUTE, 5, 0)], nothing, [], nothing, nothing)
        counter.call([f"user:acme/{number}"], Call("one", 5000, number, 1, 1, [given], []))
        clock[0] += 1.0
    assert len(counter._accounts) < 200
