"""The engines, once for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from engines import Engine, Given, NoEngineError, find_venv


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(420))
            # One set of engines: on one worker, where tests run on several.
            item.add_marker(pytest.mark.xdist_group("e2e"))


@pytest.fixture(scope="session")
def engines(request: pytest.FixtureRequest) -> Iterator[list[Engine | Given]]:
    """Two engines with a KV cache that is too small for what is asked of them."""
    given = os.environ.get("E2E_ENGINE_URLS")
    if given:
        yield [Given(url) for url in given.split(",")]
        return
    try:
        venv = find_venv(make="e2e" in (request.config.getoption("-m") or ""))
        started = [Engine(venv), Engine(venv)]
    except NoEngineError as why:
        pytest.skip(str(why))
    try:
        for engine in started:
            engine.start()
        for engine in started:
            engine.wait()
        yield list(started)
    finally:
        for engine in started:
            engine.kill()


@pytest.fixture
def urls(engines: list[Engine | Given]) -> list[str]:
    return [engine.url for engine in engines]


@pytest.fixture
def own(engines: list[Engine | Given]) -> list[Engine]:
    """The engines, where they may be killed."""
    mine = [engine for engine in engines if isinstance(engine, Engine)]
    if len(mine) != len(engines):
        pytest.skip("the engines of E2E_ENGINE_URLS are not ours to kill")
    return mine
