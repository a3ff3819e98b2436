"""What goes wrong with Redis. Requests never wait for it, and everything catches up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from ending import end
from redis_server import RedisServer
from state_world import Node, answers, chain, redis_carrier, until

MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with less waiting."""
    monkeypatch.setattr("router.state.redis_transport.REPLY_TIMEOUT_S", 0.5)
    monkeypatch.setattr("router.state.redis_transport.READ_BLOCK_S", 0.3)
    monkeypatch.setattr("router.state.redis_transport.RECONNECT_BACKOFF_S", (0.02, 0.2))
    monkeypatch.setattr("router.state.redis_transport.RELOAD_INTERVAL_S", 0.3)
    monkeypatch.setattr("router.state.redis_connector.CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr("router.state.snapshot_writer.ROUND_INTERVAL_S", 0.2)
    monkeypatch.setattr("router.state.sync.TICK_INTERVAL_S", 0.2)


async def agree(a: Node, b: Node, within: float = 10.0) -> None:
    """What a routes from now on, b comes to know, and the reverse; their books become the same."""
    for one, other in ((a, b), (b, a)):
        fresh = chain(10)
        one.serve(fresh)
        await until(lambda: other.holds(fresh) == one.holds(fresh), within)  # noqa: B023
    await until(lambda: a.in_flight() == b.in_flight(), within)
    assert a.transport.up
    assert b.transport.up


async def quick(node: Node, requests: int = 20) -> list[object]:
    """Requests while Redis does not answer: none takes more than it would otherwise."""
    chains = [chain(10) for _ in range(requests)]
    for one in chains:
        began = time.monotonic()
        node.serve(one)
        assert time.monotonic() - began < 0.25
        await asyncio.sleep(0)
    return chains


async def test_killed_and_started_empty(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    known = [chain(10) for _ in range(20)]
    for one in known:
        a.serve(one)
    flying = a.place(chain(10))
    await until(lambda: all(b.holds(one) for one in known) and b.in_flight())
    redis.kill()
    await until(lambda: not a.transport.up and not b.transport.up)
    assert a.shared.word == "local only"
    meanwhile = [*await quick(a), *await quick(b)]
    flying.finished(time.monotonic())
    redis.start()
    await until(lambda: a.transport.up and b.transport.up)
    await agree(a, b)
    for one in meanwhile:
        assert a.holds(one) == b.holds(one)
    # and it was filled again: who starts now knows what was told before it was killed
    await until(lambda: a.shared.word == "shared")
    keys = a.transport.keys
    await answers(redis, "GET", keys.position, like=bool)
    late = await node()
    assert all(late.holds(one) == a.holds(one) for one in known)


async def test_flushall(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    known = [chain(10) for _ in range(20)]
    for one in known:
        a.serve(one)
    await until(lambda: all(b.holds(one) for one in known))
    await redis.call("FLUSHALL")
    await agree(a, b)
    await answers(redis, "GET", a.transport.keys.position, like=bool)
    late = await node()
    assert all(late.holds(one) == a.holds(one) for one in known)


async def test_frozen(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    redis.signal(signal.SIGSTOP)
    try:
        meanwhile = await quick(a)
        await until(lambda: not a.transport.up and not b.transport.up)
        meanwhile += await quick(b)
    finally:
        redis.signal(signal.SIGCONT)
    await until(lambda: a.transport.up and b.transport.up)
    await agree(a, b)
    assert all(a.holds(one) == b.holds(one) for one in meanwhile)


async def test_paused_by_a_client(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    await redis.call("CLIENT", "PAUSE", 1200)
    meanwhile = await quick(a)
    await until(lambda: not a.transport.up)
    await until(lambda: a.transport.up and b.transport.up)
    await agree(a, b)
    assert all(a.holds(one) == b.holds(one) for one in meanwhile)


async def test_out_of_memory(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    await redis.call("CONFIG", "SET", "maxmemory", "1")
    a.serve(chain(10))
    await until(lambda: not a.transport.up)
    meanwhile = await quick(a)
    await redis.call("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: a.transport.up)
    await agree(a, b)
    assert all(a.holds(one) == b.holds(one) for one in meanwhile)


async def test_away_for_so_long_that_facts_are_given_up(
    node: MakeNode, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.state.outbox.MAX_WAITING_FACTS", 50)
    a, b = await node(), await node()
    redis.kill()
    await until(lambda: not a.transport._telling)
    # the index makes up for the facts: held chains are told, with what is in flight
    meanwhile = await quick(a, 60)
    flying = [a.place(chain(10)) for _ in range(4)]
    await until(lambda: a.shared.outbox.dropped)
    assert a.shared.outbox.waiting <= 50
    redis.start()
    await until(lambda: a.transport.up and b.transport.up)
    await until(lambda: all(a.holds(one) == b.holds(one) for one in meanwhile))
    await until(lambda: a.in_flight() == b.in_flight())
    for one in flying:
        one.finished(time.monotonic())
    await agree(a, b)
    assert not b.in_flight()


async def test_garbage_in_the_stream(node: MakeNode, redis: RedisServer) -> None:
    a, b = await node(), await node()
    one = chain(10)
    a.serve(one)
    await until(lambda: b.holds(one))
    good = (await redis.call("XREVRANGE", a.transport.keys.facts, "+", "-"))[-1][1][1]
    keys = a.transport.keys
    await redis.call("XADD", keys.facts, "*", "f", b"garbage")
    await redis.call("XADD", keys.facts, "*", "who", "knows", "what", "this")
    await redis.call("XADD", keys.facts, "*", "f", good[:-3])
    await redis.call("XADD", keys.facts, "*", "f", good[:40] + b"\xff" + good[41:])
    await redis.call("XADD", keys.facts, "*", "f", b"")
    await until(lambda: b.shared.peers.bad == 5)
    await redis.call("SET", keys.map("replica-a:8000"), b"garbage")
    await agree(a, b)
    late = await node()
    assert late.transport.up


async def test_a_wrong_password(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path / "locked", "--requirepass", "right").start()
    wrong, right = Node(redis_carrier(server.url, "very-wrong")), None
    try:
        assert not await asyncio.wait_for(wrong.shared.ready(0.3), 1)
        await quick(wrong)
        await until(lambda: wrong.transport.errors)
        assert not wrong.transport.up
        assert "WRONGPASS" in caplog.text or "invalid" in caplog.text
        assert "very-wrong" not in caplog.text
        right = await Node(redis_carrier(server.url, "right")).ready()
        assert right.transport.up or await until(lambda: right.transport.up) is None
    finally:
        await wrong.stop()
        if right is not None:
            await right.stop()
        server.kill()


async def test_an_acl_user(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "acl").start()
    await server.call(
        "ACL", "SETUSER", "router", "on", ">secret", "~{pre}:*", "+@stream", "+@read", "+@write",
        "+@connection",
    )  # fmt: skip
    await server.call("ACL", "SETUSER", "default", "off")
    url = server.url.replace("redis://", "redis://router@")
    a = Node(redis_carrier(url, "secret", "pre"))
    b = Node(redis_carrier(url, "secret", "pre"))
    try:
        await a.ready()
        await b.ready()
        await agree(a, b)
        await until(lambda: a.transport.errors == b.transport.errors == 0)
    finally:
        await a.stop()
        await b.stop()
        server.kill()


async def test_one_that_fell_behind_the_stream_loads_again(
    node: MakeNode, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.state.snapshot_writer.WRITE_INTERVAL_S", 0.2)
    a, b = await node(), await node()
    await until(lambda: not b.transport._reload)
    listening = next(t for t in b.transport._tasks if t.get_name() == "state listening")
    await end([listening])
    chains = [chain(10) for _ in range(30)]
    for one in chains:
        a.serve(one)
        await asyncio.sleep(0.02)
    # the keeper writes the maps; then the stream loses what b has not read
    keys = a.transport.keys
    before = await redis.call("GET", keys.position)
    await answers(redis, "GET", keys.position, like=lambda told: told != before)
    await redis.call("XTRIM", keys.facts, "MAXLEN", "0")
    assert not any(b.holds(one) for one in chains)
    transport = b.transport
    transport._tasks.append(
        asyncio.create_task(transport._forever("listening", transport._listen), name="again")
    )
    a.serve(chain(10))
    await until(lambda: all(a.holds(one) == b.holds(one) for one in chains))
    assert b.shared.peers.gaps == 1


async def test_a_stopped_router_comes_back(node: MakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was silent beyond its lease, such as in SIGSTOP, is heard again."""
    monkeypatch.setattr("router.state.peers.PEER_LEASE_S", 0.6)
    a, b = await node(), await node()
    flying = [a.place(chain(10)) for _ in range(3)]
    await until(lambda: sum(b.in_flight().values()) == 3)
    telling = a.transport._tasks[0]
    await end([telling])
    await until(lambda: not b.in_flight())
    transport = a.transport
    transport._tasks[0] = asyncio.create_task(transport._forever("telling", transport._tell))
    await until(lambda: b.in_flight() == a.in_flight())
    flying.pop().finished(time.monotonic())
    await until(lambda: sum(b.in_flight().values()) == 2)
