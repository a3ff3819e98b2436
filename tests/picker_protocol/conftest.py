"""Which picker is tested: one that is given, or our own in front of simulated replicas."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import uvloop
from protocol_world import Address, Plane, plane

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.config import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("picker")
    group.addoption("--picker", help="HOST:PORT of the picker to test; our own without it")
    group.addoption("--picker-model", help="a model that its endpoints serve")


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def picker(request: pytest.FixtureRequest) -> AsyncIterator[Address]:
    given = request.config.getoption("--picker", None) or os.environ.get("PICKER")
    if given:
        model = request.config.getoption("--picker-model", None) or os.environ.get("PICKER_MODEL")
        yield Address(given, model or "sim")
        return
    async with SimulatedFleet(3) as fleet:
        settings = Settings(
            replicas=tuple(fleet.urls),
            host="127.0.0.1",
            port=0,
            admin_port=0,
            access_log=0.0,
            settle_time=0.0,
        )
        app = App(settings, picker=True)
        await app.start()
        try:
            await app.ready()
            yield Address(f"127.0.0.1:{app.port}", "sim")
        finally:
            await app.stop()
        assert not any(load.in_flight for load in app.fleet.loads)
        assert app.gateway.live.body_bytes == 0


@pytest.fixture
async def data_plane(picker: Address) -> AsyncIterator[Plane]:
    async with plane(picker.where, picker.model) as made:
        yield made
