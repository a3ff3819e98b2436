"""How many tests run at once, and a bound for those that wait for what never comes.

The event loops hand an exception of a signal's handler to their own handler of exceptions, so that
pytest-timeout's signal fails nothing while a test waits. Here the test is cancelled, and says where
it waited. pytest-timeout's thread, which ends the whole process, is left for what does not even let
the loop run, and for fixtures.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Awaitable, Callable

import pytest

WAITING = 2
"""Workers of `-n auto` beyond the processors: half of the time of tests is waiting, for processes
that start and for timeouts."""
SHARE = 0.75
"""Of the time after which pytest-timeout ends the process."""

Test = Callable[..., Awaitable[None]]


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    return len(os.sched_getaffinity(0)) + WAITING


@pytest.hookimpl(trylast=True)  # others mark tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usual = float(config.getini("timeout"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            limit = marker.args[0] if marker and marker.args else usual
            item.obj = _bounded(item.obj, SHARE * limit)


def _bounded(test: Test, limit: float) -> Test:
    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(limit):
            await test(*args, **kwargs)

    return bounded
