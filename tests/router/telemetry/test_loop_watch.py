"""A loop that is held shows it, and who held it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from router.telemetry import loop_watch
from router.telemetry.loop_watch import LoopWatch


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the times."""
    for name in ("BEAT_S", "HELD_S", "_LOOK_INTERVAL_S"):
        monkeypatch.setattr(loop_watch, name, getattr(loop_watch, name) / 10)


@pytest.fixture
async def watch() -> AsyncIterator[LoopWatch]:
    made = LoopWatch()
    made.start()
    yield made
    made.stop()


HOLDER = "router.tests.hold"


def hold(seconds: float) -> None:
    """Let no turn of the loop pass for so long."""
    time.sleep(seconds)


# What the router's own functions look like to the watch.
hold.__globals__["__name__"] = "router.tests"


async def next_beat(watch: LoopWatch) -> None:
    """Wait until the watch's timer has run once more."""
    before = sum(watch.delay.counts)
    async with asyncio.timeout(10):
        while sum(watch.delay.counts) == before:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def be_seen(watch: LoopWatch) -> None:
    """Hold the loop until the watch has seen it: on a busy machine its thread may come late."""
    for _ in range(50):
        await next_beat(watch)
        hold(loop_watch.BEAT_S + 15 * loop_watch.HELD_S)
        if HOLDER in watch.holds:
            return


async def test_who_holds_the_loop_is_named(watch: LoopWatch) -> None:
    await be_seen(watch)
    assert watch.holds[HOLDER] == 1


async def test_one_hold_counts_once_however_long(watch: LoopWatch) -> None:
    await be_seen(watch)
    before = dict(watch.holds)
    hold(10 * loop_watch.HELD_S)
    assert watch.holds == before


async def test_the_delay_is_what_a_timer_waited(watch: LoopWatch) -> None:
    await next_beat(watch)
    before = watch.delay.sum
    hold(loop_watch.BEAT_S + 0.1)
    await next_beat(watch)
    assert watch.delay.sum - before >= 0.09


async def test_nothing_is_counted_after_the_end() -> None:
    watch = LoopWatch()
    watch.start()
    watch.stop()
    before = dict(watch.holds), sum(watch.delay.counts)
    hold(loop_watch.BEAT_S + 4 * loop_watch.HELD_S)
    await asyncio.sleep(0)
    assert (dict(watch.holds), sum(watch.delay.counts)) == before
