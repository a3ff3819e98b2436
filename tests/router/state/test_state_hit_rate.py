"""What sharing is for: several routers reuse as much as one does, also when Redis goes away for a while."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from redis_server import RedisServer, redis_binary
from running import running
from state_world import until

from loadgen.replicas import SimulatedFleet
from router.app import App

SESSIONS, STEPS, AT_ONCE, REPLICAS = 32, 6, 4, 4


@pytest.fixture
def redis(tmp_path: Path) -> RedisServer:
    redis_binary()
    return RedisServer(tmp_path / "redis")


class Tally:
    """Tokens over the answers of a run."""

    def __init__(self) -> None:
        self.prompt = 0
        self.cached = 0
        self.answers = 0

    @property
    def hit_rate(self) -> float:
        return self.cached / self.prompt


async def session(number: int, apps: list[App], http: httpx.AsyncClient, tally: Tally) -> None:
    """An agent: its history grows with each step, and any router may get the next one."""
    draw = random.Random(number)
    messages = [{"role": "system", "content": f"Tool set {number % 4}. " * 400}]
    for step in range(STEPS):
        messages.append({"role": "user", "content": f"{number} {step} {draw.random()} " * 60})
        body = {"model": "sim", "messages": messages, "max_tokens": 4}
        url = f"http://127.0.0.1:{draw.choice(apps).port}/v1/chat/completions"
        answer = await http.post(url, json=body)
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        tally.prompt += usage["prompt_tokens"]
        tally.cached += usage["prompt_tokens_details"]["cached_tokens"]
        tally.answers += 1
        messages.append(answer.json()["choices"][0]["message"])
        # A tool's pause; what routers tell each other takes some milliseconds.
        await asyncio.sleep(0.05)


async def run(routers: int, redis: RedisServer | None, trouble: bool = False) -> Tally:
    """The same sessions against fresh replicas and routers."""
    tally = Tally()
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(SimulatedFleet(REPLICAS))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        apps = []
        for _ in range(routers):
            state = redis.url if redis is not None else ""
            made = running(fleet.urls, state=state, kv_cache_tokens=200_000)
            app = await stack.enter_async_context(made)
            apps.append(app)
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with limit:
                await session(number, apps, http, tally)

        tasks = [asyncio.create_task(one(number)) for number in range(SESSIONS)]
        if trouble:
            assert redis is not None
            await until(lambda: tally.answers > SESSIONS * STEPS // 3, 30)
            redis.kill()
            await until(lambda: tally.answers > SESSIONS * STEPS // 2, 30)
            redis.start()
        await asyncio.gather(*tasks)
    assert tally.answers == SESSIONS * STEPS
    return tally


@pytest.mark.timeout(120)
async def test_four_routers_reuse_what_one_would(redis: RedisServer) -> None:
    redis.start()
    try:
        one = await run(1, None)
        four = await run(4, redis)
        alone = await run(4, None)
    finally:
        redis.kill()
    assert four.hit_rate > one.hit_rate - 0.02
    # The test would not tell otherwise.
    assert alone.hit_rate < one.hit_rate - 0.05


@pytest.mark.timeout(120)
async def test_redis_that_goes_away_and_comes_back_empty_loses_no_request(
    redis: RedisServer,
) -> None:
    redis.start()
    try:
        await run(4, redis, trouble=True)
    finally:
        redis.kill()
