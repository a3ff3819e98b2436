"""Two routers with a queue each and a real redis-server between them, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ending import end
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    ScriptedReplica,
    chunk,
    event,
    post,
    until,
)
from redis_server import RedisServer

from router.app import App
from router.queue.queue import Queue

PATH = "/v1/chat/completions"
ANSWER = (SSE_HEAD, chunk(event(choices=[{"delta": {"content": "a"}}])), END)
LOW = "x-dynamo-request-priority: -1"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
async def steps(replicas: MakeReplica) -> ScriptedReplica:
    replica = await replicas()
    replica.reply_in_steps(*ANSWER)
    return replica


@pytest.fixture
async def two(router: MakeRouter, redis: RedisServer, steps: ScriptedReplica) -> tuple[App, App]:
    """Two routers in front of a replica with room for 5,000 tokens, that know of each other."""
    made = [await router(steps, state=redis.url, kv_cache_tokens=5000) for _ in range(2)]
    for app in made:
        await until(lambda app=app: shares(app))
        # What begins like anything is known to go on, so that it waits at the door.
        for _ in range(50):
            queue_of(app).door.sessions.beginnings.began(0)
            queue_of(app).door.sessions.beginnings.went_on(0)
    return made[0], made[1]


def queue_of(app: App) -> Queue:
    return app.gateway.queue.queue


def shares(app: App) -> bool:
    shared = app.shared
    assert shared is not None
    return shared.routers == 1 and shared.queues_shared and queue_of(app).door.works


def body(text: str, tokens: int, *more: str) -> bytes:
    """A prompt of so many tokens; then the answers and prompts of later steps."""
    messages = [{"role": "user", "content": (text * 4 * tokens)[: 4 * tokens]}]
    for number, content in enumerate(more):
        messages.append({"role": ("assistant", "user")[number % 2], "content": content})
    return json.dumps({"model": "m", "stream": True, "messages": messages}).encode()


def wanted(app: App) -> float:
    return queue_of(app).door.sessions.wanted(0, 5000.0)


async def die(app: App) -> None:
    """As after SIGKILL: the others are told nothing."""
    shared = app.shared
    assert shared is not None
    shared._running = False
    assert shared._ticking is not None
    shared._ticking.cancel()
    await end(shared.transport._tasks)  # type: ignore[attr-defined]


async def test_the_door_counts_the_sessions_of_the_other_router(
    two: tuple[App, App], connect: Connect, steps: ScriptedReplica
) -> None:
    a, b = two
    first = await connect(a)
    first.send(post(PATH, body("one ", 3000), "x-session-id: one"))
    await steps.asked(1)
    await until(lambda: wanted(b) > 0.0)
    assert wanted(b) == wanted(a) > 2000.0
    # A new one waits at the other router; the next request of the same session does not.
    new = await connect(b)
    new.send(post(PATH, body("two ", 3000), "x-session-id: two"))
    await until(lambda: queue_of(b).door.size == 1)
    same = await connect(b)
    same.send(post(PATH, body("one ", 10), "x-session-id: one"))
    await steps.asked(2)
    assert queue_of(b).door.size == 1
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await same.answer())[0] == 200
    await until(lambda: queue_of(a).door.sessions.idle_count == 1)
    await until(lambda: queue_of(b).door.sessions.idle_count == 1)
    # Nobody is known to come back from a pause: the memory is the next session's before long.
    queue_of(b).door.sessions.set_horizon(0.0)
    queue_of(b).release(0.0)
    await steps.asked(3)
    for _ in range(2):
        steps.step()
    assert (await new.answer())[0] == 200


async def test_a_session_told_by_its_prompts_goes_on_at_the_other_router(
    two: tuple[App, App], connect: Connect, steps: ScriptedReplica
) -> None:
    a, b = two
    for _ in range(2):
        steps.step()
    client = await connect(a)
    assert (await client.ask(post(PATH, body("one ", 2000))))[0] == 200
    await until(lambda: queue_of(b).door.sessions.idle_count == 1)
    (name,) = queue_of(a).door.sessions._by_key
    client = await connect(b)
    client.send(post(PATH, body("one ", 2000, "a", "go on")))
    await steps.asked(2)
    assert queue_of(b).door.sessions.count == 1
    assert list(queue_of(b).door.sessions._by_key) == [name]
    await until(lambda: queue_of(a).door.sessions.idle_count == 0)
    assert queue_of(a).door.sessions.count == 1
    assert wanted(a) == wanted(b) > 1000.0
    for _ in range(2):
        steps.step()
    assert (await client.answer())[0] == 200
    await until(lambda: queue_of(a).door.sessions.idle_count == 1)


async def test_what_waits_at_one_router_goes_before_a_worse_class_at_the_other(
    two: tuple[App, App], connect: Connect, steps: ScriptedReplica
) -> None:
    a, b = two
    # One in progress at A fills the gate; then one of each class waits, at a router each.
    first = await connect(a)
    first.send(post(PATH, body("one ", 4000), "x-session-id: s"))
    await steps.asked(1)
    await until(lambda: queue_of(b).gate(0).others_sent == 1)
    assert queue_of(b).gate(0).others_sent_tokens == int(queue_of(a).gate(0).sent_tokens)
    queue_of(a).came(1, "", 1e12)
    queue_of(b).came(1, "", 1e12)
    high = await connect(a)
    high.send(post(PATH, body("two ", 1000), "x-session-id: s"))
    await until(lambda: queue_of(a).held == 1)
    waiting = queue_of(b).gate(0).others_waiting
    await until(lambda: (0, "") in waiting)
    low = await connect(b)
    low.send(post(PATH, body("three ", 1000), LOW, "x-session-id: s"))
    await until(lambda: queue_of(b).held == 1)
    steps.step()  # the first token of the first: one may be sent
    await steps.asked(2)
    assert b"two " in steps.received[1].body
    await until(lambda: not waiting)
    for _ in range(2):
        steps.step()
    await steps.asked(3)
    for _ in range(4):
        steps.step()
    for client in (first, high, low):
        assert (await client.answer())[0] == 200
    for app in two:
        await until(lambda app=app: not queue_of(app).gate(0).others_sent)
        assert queue_of(app).gate(0).others_sent_tokens == 0.0


async def test_what_a_killed_router_had_is_forgotten(
    two: tuple[App, App],
    connect: Connect,
    steps: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.state.peers.PEER_LEASE_S", 2.0)
    a, b = two
    queue_of(a).came(1, "", 1e12)
    first = await connect(a)
    first.send(post(PATH, body("one ", 4000), "x-session-id: s"))
    await steps.asked(1)
    held = await connect(a)
    held.send(post(PATH, body("two ", 1000), "x-session-id: s"))
    gate = queue_of(b).gate(0)
    await until(lambda: gate.others_waiting and gate.others_sent)
    assert wanted(b) > 0.0
    await die(a)
    await until(lambda: not gate.others_waiting and not gate.others_sent)
    assert gate.others_sent_tokens == 0.0
    assert wanted(b) == 0.0
    assert queue_of(b).door.sessions.count == 0
    held.close()
    first.close()
    for _ in range(4):
        steps.step()


async def test_without_redis_there_is_no_door_until_it_is_back(
    two: tuple[App, App],
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = two
    monkeypatch.setattr("router.http.queueing.UNSHARED_S", 0.5)
    assert a.gateway.queue.kv_wanted(0) is not None
    redis.kill()
    for app in two:
        await until(lambda app=app: app.gateway.queue.kv_wanted(0) is None)
    told = [record.getMessage() for record in caplog.records]
    assert sum("Redis cannot be reached" in line for line in told) == 2
    redis.start()
    for app in (a, b):
        await until(lambda app=app: app.gateway.queue.kv_wanted(0) is not None)


def tenants_of(replica: ScriptedReplica) -> list[str]:
    """Whose each request was, in the order they came."""
    return [str(one.header("x-api-key")) for one in replica.received]


async def test_tenants_take_turns_over_both_routers(
    two: tuple[App, App], connect: Connect, steps: ScriptedReplica
) -> None:
    """One floods router A, the other asks at B: it is served as often while it has something."""
    a, b = two
    for app in two:  # each tenant's session is another, and would wait at the door
        queue_of(app).door.share = 0.0
        await until(lambda app=app: not queue_of(app).door.works)
    first = await connect(a)
    first.send(post(PATH, body("first ", 4000), "x-session-id: s", "x-api-key: flood"))
    await steps.asked(1)
    await until(lambda: queue_of(b).gate(0).others_sent == 1)
    for app in two:  # neither class is new, whatever was told first
        queue_of(app).came(0, "another", 1e12)
    clients = [first]
    for app, key, count in ((a, "flood", 8), (b, "calm", 3)):
        for number in range(count):
            client = await connect(app)
            text = f"{key} {number} "
            client.send(post(PATH, body(text, 2000), "x-session-id: s", f"x-api-key: {key}"))
            await until(lambda app=app, held=number + 1: queue_of(app).held == held)
            clients.append(client)
    for app in two:
        await until(lambda app=app: queue_of(app).gate(0).others_waiting)
    for sent in range(2, 13):
        # Its first token and its end; then the next one may go, at either router.
        steps.step()
        steps.step()
        await steps.asked(min(sent, 12))
    names = tenants_of(steps)
    assert len(names) == 12
    # Of what was served until the last of the calm one, half at most was the flood's; one more may
    # go while the routers hear of each other.
    last = 11 - names[::-1].index("calm")
    assert names[: last + 1].count("flood") <= 3 + 2
    for _ in range(2):
        steps.step()
    for client in clients:
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("how", ["close", "vanish"])
@pytest.mark.parametrize("where", ["door", "lane", "sent", "answering"])
async def test_a_client_that_leaves_leaves_nothing_at_either_router(
    two: tuple[App, App], connect: Connect, steps: ScriptedReplica, where: str, how: str
) -> None:
    a, b = two
    first = await connect(a)
    first.send(post(PATH, body("one ", 4000), "x-session-id: one"))
    await steps.asked(1)
    await until(lambda: queue_of(b).gate(0).others_sent == 1)
    leaves = first
    if where == "answering":
        steps.step()
        await until(lambda: not queue_of(b).gate(0).others_sent)
    elif where == "door":
        leaves = await connect(b)
        leaves.send(post(PATH, body("two ", 3000), "x-session-id: two"))
        await until(lambda: queue_of(b).door.size == 1)
    elif where == "lane":
        leaves = await connect(b)
        leaves.send(post(PATH, body("two ", 3000), LOW, "x-session-id: one"))
        await until(lambda: queue_of(b).held == 1)
        await until(lambda: queue_of(a).gate(0).others_waiting)
    getattr(leaves, how)()
    if leaves is not first:
        await until(lambda: not queue_of(b).waiting)
        await until(lambda: not queue_of(a).gate(0).others_waiting)
        for _ in range(2):
            steps.step()
        assert (await first.answer())[0] == 200
    for app in two:
        gate, sessions = queue_of(app).gate(0), queue_of(app).door.sessions
        await until(lambda gate=gate: not gate.sent + gate.running + gate.others_sent)
        await until(lambda sessions=sessions: sessions.count == sessions.idle_count)
        assert gate.others_sent_tokens == gate.running_tokens == 0.0
        assert sessions._books[0].active == [0.0, 0.0]
    for _ in range(2):
        steps.step()
