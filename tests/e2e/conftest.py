"""The engines, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.engines import SMALL
from bench.engines import engines as start_engines
from bench.vllm import Engine, Given, NoEngineError, find_venv, given


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            # The first waits for the engines as well. No test is judged by its speed.
            item.add_marker(pytest.mark.timeout(660))
            # One set of engines: on one worker, where tests run on several.
            item.add_marker(pytest.mark.xdist_group("e2e"))


@pytest.fixture(scope="session")
def engines() -> Iterator[list[Engine] | list[Given]]:
    """Two engines with a KV cache that is too small for what is asked of them."""
    if running := given():
        yield running
        return
    try:
        find_venv()
    except NoEngineError as why:
        pytest.skip(str(why))
    with start_engines(2, **SMALL) as started:
        yield started


@pytest.fixture
def urls(engines: list[Engine] | list[Given]) -> list[str]:
    return [engine.url for engine in engines]


@pytest.fixture
def own(engines: list[Engine] | list[Given]) -> list[Engine]:
    """The engines, where they may be killed."""
    mine = [engine for engine in engines if isinstance(engine, Engine)]
    if len(mine) != len(engines):
        pytest.skip("the engines of E2E_ENGINE_URLS are not ours to kill")
    return mine
