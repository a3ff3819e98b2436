"""Which engine is woken for requests that wait, and when the next one is."""

from __future__ import annotations

import asyncio

from router.config import Settings
from router.fleet.fleet import Fleet
from router.fleet.replica import Replica
from router.fleet.waking import AGAIN_AFTER_S, PATIENCE_S, STILL_ASLEEP_S, Waker


class World:
    """Two engines that sleep, a clock, and what was asked of them."""

    def __init__(self, problem: str = "", *, answers: bool = True) -> None:
        self.now = 1000.0
        self.asked: list[int] = []
        self.problem, self.answers = problem, answers
        self.fleet = Fleet(Settings(replicas=()))
        for port in (1, 2):
            self.fleet.add(f"http://127.0.0.1:{port}", models=("m",)).asleep = True
        self.waker = Waker(self.fleet, self._call, lambda: self.now)

    async def _call(self, replica: Replica) -> str:
        self.asked.append(replica.slot)
        if not self.answers:
            await asyncio.Event().wait()
        return self.problem

    async def look(self, later: float = 0.0) -> list[int]:
        """Who was asked, after a request has waited for so many seconds more."""
        self.now += later
        self.waker.wake("m")
        for _ in range(4):
            await asyncio.sleep(0)
        return self.asked


async def test_one_that_says_it_woke_and_sleeps_is_not_asked_in_a_circle() -> None:
    world = World()
    for _ in range(10):
        await world.look()
    assert world.asked == [0, 1]
    assert await world.look(STILL_ASLEEP_S) == [0, 1, 0]


async def test_one_that_does_not_wake_is_asked_again_after_a_while() -> None:
    world = World("POST /wake_up was answered 404")
    for _ in range(10):
        await world.look()
    assert world.asked == [0, 1]
    assert await world.look(AGAIN_AFTER_S) == [0, 1, 0]


async def test_one_that_hangs_does_not_keep_the_next_one_asleep() -> None:
    world = World(answers=False)
    try:
        assert await world.look() == [0]
        assert await world.look(PATIENCE_S - 1) == [0]
        assert await world.look(2.0) == [0, 1]
        assert await world.look(PATIENCE_S) == [0, 1]
    finally:
        await world.waker.stop()
