from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from redis_server import RedisServer
from state_world import Node, redis_carrier


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
async def node(redis: RedisServer) -> AsyncIterator[Callable[..., Awaitable[Node]]]:
    """Makes routers that share through the redis fixture."""
    made: list[Node] = []

    async def make(url: str = "", password: str = "", **fields: object) -> Node:
        one = Node(redis_carrier(url or redis.url, password), **fields)  # type: ignore[arg-type]
        made.append(one)
        return await one.ready()

    yield make
    for one in made:
        await one.stop()
