from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from redis_server import RedisServer
from state_world import Node, answers, chain, until

from router.cli.main import main

MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.state.snapshot_writer.WRITE_INTERVAL_S", 0.1)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND_INTERVAL_S", 0.1)


class Told(NamedTuple):
    """What a command has said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


async def shell(*arguments: str) -> Told:
    """The command in a thread of its own, since it has an event loop of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        async with asyncio.timeout(40):
            status = await asyncio.to_thread(main, ["state", *arguments])
    return Told(status, out.getvalue(), err.getvalue())


async def test_shows_routers_and_replicas_and_forgets_one(
    node: MakeNode, redis: RedisServer
) -> None:
    a, b = await node(), await node()
    one = chain(20)
    name = a.serve(one)
    await until(lambda: b.holds(one))
    keys = a.transport.keys
    await answers(redis, "HGET", keys.maps, name, like=lambda told: told and told[:3] == b"20 ")
    told = await shell("--state", redis.url, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    assert set(report["routers"]) == {f"{n.shared.router:016x}" for n in (a, b)}
    assert report["keeper"] in report["routers"]
    replica = next(each for each in report["replicas"] if each["name"] == name)
    assert replica["blocks"] == 20
    assert 160 < replica["bytes"] < 300
    for_people = await shell("--state", redis.url)
    assert name in for_people.stdout
    assert report["keeper"] + "*" in for_people.stdout
    wrong = await shell("flush", "--replica", "nobody:1", "--state", redis.url)
    assert wrong.returncode == 1
    assert name in wrong.stderr
    flushed = await shell("flush", "--replica", name, "--state", redis.url)
    assert flushed.returncode == 0, flushed.stderr
    await until(lambda: not a.holds(one) and not b.holds(one))
    # again at once: not taken for what was told before
    slot = a.fleet.find(f"http://{name}").slot
    a.index.record(slot, one, 0.0)
    await answers(redis, "HEXISTS", keys.maps, name, like=bool)
    assert (await shell("flush", "--replica", name, "--state", redis.url)).returncode == 0
    await until(lambda: not a.holds(one))
    late = await node()
    assert not late.holds(one)


async def test_says_what_is_missing(redis: RedisServer) -> None:
    nothing = await shell()
    assert nothing.returncode == 1
    assert "--state" in nothing.stderr
    which = await shell("flush", "--state", redis.url)
    assert which.returncode == 1
    assert "--replica" in which.stderr
    redis.kill()
    gone = await shell("--state", redis.url)
    assert gone.returncode == 1
    assert "refused" in gone.stderr or "Connect" in gone.stderr
