"""How many tests run at once, in which order, and a bound for those that wait for what never comes.

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
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

WAITING = 2
"""Workers of `-n auto` beyond the processors: half of the time of tests is waiting, for processes
that start and for timeouts."""
SHARE = 0.75
"""Of the time after which pytest-timeout ends the process."""

LONGEST = (
    "state/test_state_hit_rate.py",
    "http/test_http_attack.py",
    "dashboards/test_dashboards_scaling.py",
    "live/test_live_compare.py",
    "router/test_app_outside.py",
    "tenants/test_tenants_routers.py",
    "picker/test_picker_envoy.py",
    "admin/test_console_browser.py",
    "quickstart/test_quickstart_load.py",
    "live/test_live_processes.py",
    "live/test_live_comparing.py",
    "live/test_live_stopped.py",
    "tenants/test_tenants_workers.py",
    "state/test_state_routers.py",
    "simulate/test_simulate.py",
    "router/test_app.py",
    "state/test_state_cli.py",
    "results/test_results_export.py",
    "queue/test_queue_books.py",
    "reproduce/test_reproduce_page.py",
    "calibrate/test_calibrate_command.py",
    "live/test_live_replay.py",
    "deploy/test_deploy_gateway.py",
    "loadgen/test_loadgen_demo.py",
    "picker/test_picker_ext_proc.py",
    "dashboards/test_dashboards_live.py",
    "quickstart/test_quickstart_gateways.py",
)
"""Files that take long for how few tests they have. They run first: one that began last would leave
the other workers with nothing to do."""

Test = Callable[..., Awaitable[None]]


@pytest.hookimpl(trylast=True)  # after xdist has read its options
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # ours is the order, not that of most tests


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    return len(os.sched_getaffinity(0)) + WAITING


@pytest.hookimpl(trylast=True)  # others mark tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _order(items)
    usual = float(config.getini("timeout"))
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            marker = item.get_closest_marker("timeout")
            limit = marker.args[0] if marker and marker.args else usual
            item.obj = _bounded(item.obj, SHARE * limit)


def _order(items: list[pytest.Item]) -> None:
    """The longest files first, then those of most tests."""
    tests = Counter(item.path for item in items)

    def rank(path: Path) -> tuple[int, int, str]:
        name = "/".join(path.parts[-2:])
        longest = LONGEST.index(name) if name in LONGEST else len(LONGEST)
        return longest, -tests[path], str(path)

    ranks = {path: rank(path) for path in tests}
    items.sort(key=lambda item: ranks[item.path])


def _bounded(test: Test, limit: float) -> Test:
    @functools.wraps(test)
    async def bounded(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(limit):
            await test(*args, **kwargs)

    return bounded
