from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fleet_engines import Engine, StartEngine, StartFleet

from router.config import Settings
from router.fleet.fleet import Fleet

QUICK: dict[str, Any] = {
    "health_interval": 0.05,
    "health_timeout": 5.0,
    "metrics_interval": 0.05,
    "models_interval": 0.05,
    "slow_start": 0.0,
}


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def engine(closing: AsyncExitStack) -> StartEngine:
    """Start an engine; its fields are given by name."""

    async def start(**fields: Any) -> Engine:
        engine = await Engine(**fields).start()
        closing.push_async_callback(engine.stop)
        return engine

    return start


@pytest.fixture
def fleet(closing: AsyncExitStack) -> StartFleet:
    """Start a fleet of these engines or URLs, and wait for its first round."""

    async def start(*members: Engine | str, **settings: Any) -> Fleet:
        urls = tuple(m if isinstance(m, str) else m.url for m in members)
        fleet = Fleet(Settings(replicas=urls, **{**QUICK, **settings}))
        await fleet.start()
        closing.push_async_callback(fleet.stop)
        assert await fleet.wait_first_round(10)
        return fleet

    return start
