"""Fixtures of the picker's tests. After every test the books must balance."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import uvloop
from picker_world import Maker, MakeWorld


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Errors that a test expects, as regular expressions; all others fail it."""
    expected: list[str] = []
    caplog.set_level(logging.WARNING)
    yield expected
    for record in caplog.get_records("call"):
        line = f"{record.name}: {record.getMessage()}"
        bad = record.levelno >= logging.ERROR or record.name == "asyncio"
        if bad and not any(re.search(pattern, line) for pattern in expected):
            pytest.fail(f"logged: {line}\n{record.exc_text or ''}")


@pytest.fixture
async def maker(complaints: list[str], tmp_path: Path) -> AsyncIterator[Maker]:
    made = Maker(tmp_path)
    try:
        yield made
        await made.check()
    finally:
        await made.close()


@pytest.fixture
def world(maker: Maker) -> MakeWorld:
    return maker.world
