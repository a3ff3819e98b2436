"""Three routers as processes, one Redis, and a fleet: limits hold whatever happens to whom."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis_server import RedisServer
from router_process import Process, Serve

from loadgen.replicas import SimulatedFleet
from router.cli.main import main
from router.tenants.keys import new_key

KEYS = {"acme": new_key(), "beta": new_key()}
HEADERS = {"authorization": f"Bearer {KEYS['acme']}"}


def tenants(folder: Path, **limits: int) -> str:
    path = folder / "tenants.yaml"
    digests = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in KEYS.items()}
    told = {
        name: {"limits": limits, "keys": [{"name": "ci", "sha256": digest}]}
        for name, digest in digests.items()
    }
    path.write_text(yaml.safe_dump({"tenants": told}))
    return str(path)


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2) as made:
        yield made


async def three(
    serve: Serve, fleet: SimulatedFleet, redis: RedisServer | str, file: str
) -> list[Process]:
    state = redis if isinstance(redis, str) else redis.url
    routers = await asyncio.gather(
        *(serve(*fleet.urls, state=state, tenants=file) for _ in range(3))
    )
    for router in routers:
        await router.ready()
        await limits_are(router, "ok")
    return list(routers)


Watched = Callable[[], Awaitable[str]]
"""Has a Sentinel watch over the Redis, and a replica of it; the URL of the three."""


@pytest.fixture
async def watched(redis: RedisServer, tmp_path: Path) -> AsyncIterator[Watched]:
    made: list[RedisServer] = []

    async def make() -> str:
        copy = RedisServer(tmp_path / "copy", "--replicaof", "127.0.0.1", str(redis.port)).start()
        made.append(copy)
        sentinel = RedisServer(tmp_path / "sentinel")
        made.append(sentinel)
        file = tmp_path / "sentinel" / "sentinel.conf"
        file.write_text(
            f"sentinel monitor mymaster 127.0.0.1 {redis.port} 1\n"
            "sentinel down-after-milliseconds mymaster 2000\n"
            "sentinel failover-timeout mymaster 6000\n"
        )
        sentinel.start(file)
        async with asyncio.timeout(30):
            while b"slave0" not in await redis.call("INFO", "replication"):  # type: ignore[operator]  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while not await sentinel.call("SENTINEL", "REPLICAS", "mymaster"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"

    yield make
    for each in made:
        each.kill()


async def limits_are(router: Process, word: str) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
        while word not in (await http.get(f"{router.admin}/readyz")).json()["limits"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def body(**fields: Any) -> dict[str, Any]:
    say = [{"role": "user", "content": f"hello {random.random()} " * 10}]
    return {"model": "sim", "messages": say, "max_tokens": 30, "stream": True, **fields}


async def used_by(http: httpx.AsyncClient, url: str, aborts: bool) -> int:
    """Tokens that one request used, as its client knows: -1 where it was refused."""
    asked = body(stream_options={"include_usage": True})
    async with http.stream("POST", f"{url}/v1/chat/completions", json=asked) as stream:
        if stream.status_code == 429:
            assert 1 <= int(stream.headers["retry-after"]) <= 62
            return -1
        assert stream.status_code == 200
        events = 0
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                events += 1
                usage = json.loads(line[6:]).get("usage")
                if usage:
                    return int(usage["prompt_tokens"]) + int(usage["completion_tokens"])
            if aborts and events == 3:
                return events
    raise AssertionError("a stream without usage")


@pytest.mark.timeout(180)
async def test_a_hundred_clients_of_two_tenants_stay_within_the_limit_of_each(
    serve: Serve, redis: RedisServer, fleet: SimulatedFleet, tmp_path: Path
) -> None:
    limit, chance = 6_000, random.Random(7)
    routers = await three(serve, fleet, redis, tenants(tmp_path, tokens_per_minute=limit))
    used: dict[str, list[int]] = {name: [] for name in KEYS}
    began = time.monotonic()

    async def client(number: int) -> None:
        tenant = "acme" if number % 2 else "beta"
        headers = {"authorization": f"Bearer {KEYS[tenant]}"}
        async with httpx.AsyncClient(headers=headers, timeout=60) as http:
            for _ in range(4):
                aborts = chance.random() < 0.3
                used[tenant].append(await used_by(http, routers[number % 3].front, aborts))

    await asyncio.gather(*(client(number) for number in range(100)))
    assert time.monotonic() - began < 60, "the machine was too slow for one minute's limit"
    estimate = 30 + 150
    for tokens in used.values():
        assert -1 in tokens, "the limit was never met"
        admitted = sum(each for each in tokens if each > 0)
        assert limit / 2 < admitted <= limit + estimate


@pytest.mark.timeout(180)
async def test_a_router_that_was_killed_leaks_nothing(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    async with SimulatedFleet(1, time_scale=0.05, default_output_tokens=4000) as slow:
        file = tenants(tmp_path, concurrent_requests=8)
        routers = await three(serve, slow, redis, file)
        async with httpx.AsyncClient(headers=HEADERS, timeout=60) as http:

            async def begin(router: Process) -> httpx.Response:
                asked = http.build_request(
                    "POST", f"{router.front}/v1/chat/completions", json=body(max_tokens=4000)
                )
                return await http.send(asked, stream=True)

            held = await asyncio.gather(*(begin(routers[0]) for _ in range(8)))
            assert {each.status_code for each in held} == {200}
            assert (await begin(routers[1])).status_code == 429
            routers[0].signal(signal.SIGKILL)
            await routers[0].exit()
            died = time.monotonic()
            while (refused := await begin(routers[1])).status_code == 429:
                await refused.aclose()
                assert time.monotonic() - died < 15
                await asyncio.sleep(0.2)
            others = await asyncio.gather(*(begin(routers[2]) for _ in range(7)))
            assert {each.status_code for each in others} == {200}
            assert (await begin(routers[1])).status_code == 429


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", ["killed", "frozen", "failed over"])
async def test_redis_goes_and_comes_back_and_no_request_is_lost(
    serve: Serve,
    redis: RedisServer,
    watched: Watched,
    fleet: SimulatedFleet,
    tmp_path: Path,
    way: str,
) -> None:
    file = tenants(tmp_path, requests_per_minute=100_000)
    state: RedisServer | str = await watched() if way == "failed over" else redis
    routers = await three(serve, fleet, state, file)
    statuses: list[int] = []
    stop = asyncio.Event()

    async def client(number: int) -> None:
        async with httpx.AsyncClient(headers=HEADERS, timeout=60) as http:
            while not stop.is_set():
                url = f"{routers[number % 3].front}/v1/chat/completions"
                answer = await http.post(url, json=body(stream=False, max_tokens=2))
                statuses.append(answer.status_code)
                await asyncio.sleep(0.02)

    clients = [asyncio.create_task(client(number)) for number in range(6)]
    if way == "frozen":
        redis.signal(signal.SIGSTOP)
    else:
        redis.kill()
    for router in routers:
        await limits_are(router, "without Redis (share)")
    seen = len(statuses)
    if way == "killed":
        redis.start()
    elif way == "frozen":
        redis.signal(signal.SIGCONT)
    for router in routers:
        await limits_are(router, "ok")
    stop.set()
    await asyncio.gather(*clients)
    assert seen > 0
    assert set(statuses) == {200}


@pytest.mark.timeout(120)
async def test_a_key_made_and_revoked_by_the_command(
    serve: Serve,
    redis: RedisServer,
    fleet: SimulatedFleet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    router = await serve(*fleet.urls, state=redis.url, tenants="redis")
    await router.ready()
    flags = ["--state", redis.url]

    def command(*arguments: str) -> Any:
        assert main(["keys", *arguments, "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    made = await asyncio.to_thread(
        command, "create", "--tenant", "acme", "--name", "ci", "--expires", "90d"
    )
    async with httpx.AsyncClient(headers={"x-api-key": made["key"]}, timeout=30) as http:

        async def becomes(status: int) -> None:
            async with asyncio.timeout(1):
                while (  # noqa: ASYNC110
                    await http.post(f"{router.front}/v1/messages", json=body(stream=False))
                ).status_code != status:
                    await asyncio.sleep(0.01)

        await becomes(200)
        (listed,) = await asyncio.to_thread(command, "list")
        assert (listed["id"], listed["tenant"], listed["name"]) == (made["id"], "acme", "ci")
        assert made["key"] not in json.dumps(listed)
        revoked = await asyncio.to_thread(main, ["keys", "revoke", made["id"], *flags])
        assert revoked == 0
        await becomes(401)
    assert made["key"] not in router.log
