"""The collector looks at what is new, often; at everything only while no request would wait."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from router import garbage


class Knot:
    """A cycle, which only the collector frees."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The collector's settings are the process's."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def looks() -> list[int]:
    """How often each generation was looked at."""
    return [each["collections"] for each in gc.get_stats()]


def old_knot() -> weakref.ref[Knot]:
    """A cycle that became garbage only after the collector had looked at it as new."""
    knot = Knot()
    found = weakref.ref(knot)
    gc.collect(0)
    del knot
    gc.collect(0)
    assert found() is not None
    return found


def test_objects_that_stay_are_looked_at_once() -> None:
    garbage.settle()
    before = looks()
    kept: list[list[int]] = [[] for _ in range(200_000)]
    young, middle, old = (now - was for now, was in zip(looks(), before, strict=True))
    assert len(kept) == 200_000
    assert young >= 50
    assert (middle, old) == (0, 0)


def test_new_garbage_is_found_soon() -> None:
    garbage.settle()
    knot = weakref.ref(Knot())
    kept: list[list[int]] = [[] for _ in range(10_000)]
    assert len(kept) == 10_000
    assert knot() is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two looks, nor for growth."""
    monkeypatch.setattr(garbage, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(garbage, "_EARLIEST_S", 0.0)
    monkeypatch.setattr(garbage, "_GROWTH", 0)


async def looked(turns: int, busy: bool) -> None:
    """Wait until it was asked so often whether it is busy."""
    asked = 0

    def is_busy() -> bool:
        nonlocal asked
        asked += 1
        return busy

    task = asyncio.create_task(garbage.collect_at_rest(is_busy))
    while asked < turns:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()


@pytest.mark.usefixtures("quick")
async def test_old_garbage_is_found_while_nothing_is_asked() -> None:
    garbage.settle()
    knot = old_knot()
    await looked(2, busy=False)
    assert knot() is None


@pytest.mark.usefixtures("quick")
async def test_requests_in_progress_are_not_held_up() -> None:
    garbage.settle()
    knot = old_knot()
    await looked(20, busy=True)
    assert knot() is not None


@pytest.mark.usefixtures("quick")
async def test_a_router_that_never_rests_looks_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "_LATEST_S", 0.0)
    garbage.settle()
    knot = old_knot()
    task = asyncio.create_task(garbage.collect_at_rest(lambda: True))
    async with asyncio.timeout(10):
        while knot() is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    task.cancel()


async def test_nothing_new_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(garbage, "_EARLIEST_S", 0.0)
    garbage.settle()
    before = looks()[2]
    task = asyncio.create_task(garbage.collect_at_rest(lambda: False))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    assert looks()[2] == before


async def test_two_looks_are_not_close_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_INTERVAL_S", 0.0)
    monkeypatch.setattr(garbage, "_GROWTH", 0)
    garbage.settle()
    before = looks()[2]
    task = asyncio.create_task(garbage.collect_at_rest(lambda: False))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    assert looks()[2] == before
