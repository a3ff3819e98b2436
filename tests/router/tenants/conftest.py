from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop
from redis_server import RedisServer


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()
