"""Engines' metrics are gone while requests wait: dispatch goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import monotonic

import pytest
from http_world import Connect, MakeReplica, MakeRouter, Raw, ScriptedReplica, post, until
from redis_server import RedisServer
from test_http_queue import ANSWER, LOW, PATH, body, busy, knows_sessions, waits
from test_http_queue_changes import metrics

from router.app import App
from router.queue.queue import Queue

FAULTS = ("absent", "hang", "500", "empty")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


def queue_of(app: App) -> Queue:
    return app.gateway.queue.queue


async def break_metrics(replica: ScriptedReplica, fault: str) -> None:
    """From now on; once it was asked again, so that the router knows."""
    if fault == "absent":
        replica.metrics = b""
    else:
        replica.metrics_fault = fault
    before = replica.own["/metrics"]
    await until(lambda: replica.own["/metrics"] > before)


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_last_word_of_an_engine_does_not_hold_its_lane_for_ever(
    router: MakeRouter,
    connect: Connect,
    replicas: MakeReplica,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    full = await replicas(metrics=metrics(0.95, 1000))
    full.reply_in_steps(*ANSWER)
    app = await router(full, metrics_interval=0.05, health_timeout=0.2)
    queue = queue_of(app)
    await until(lambda: app.fleet.loads[0].kv_capacity == 16_000)
    first = await busy(app, connect, full)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="low"), LOW))
    await waits(app)
    await until(lambda: queue.gate(0).usage == 0.95)
    full.step()  # the first one's token: its gate is open, and its memory full
    await until(lambda: not queue.gate(0).sent)
    await break_metrics(full, fault)
    assert queue.held == 1
    # Without the engine's word, what was sent there is what counts, and that is little.
    monkeypatch.setattr("router.queue.gate.STALE_S", 0.3)
    await full.asked(2)
    assert app.fleet.loads[0].kv_capacity == 16_000
    # It tells again: its word counts again, for who comes then.
    full.metrics, full.metrics_fault = metrics(0.99, 1000), ""
    monkeypatch.setattr("router.queue.gate.STALE_S", 10.0)
    await until(lambda: queue.gate(0).usage == 0.99)
    for _ in range(2):  # the first one's end, and the token of the other
        full.step()
    await until(lambda: not queue.gate(0).sent)
    last = await connect(app)
    last.send(post(PATH, body(1000, text="last"), LOW))
    await waits(app)
    for _ in range(3):
        full.step()
    for client in (first, low, last):
        assert (await client.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("fault", FAULTS[1:])
async def test_all_that_waits_at_several_routers_is_answered_without_metrics(
    router: MakeRouter,
    connect: Connect,
    replicas: MakeReplica,
    redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr("router.queue.gate.STALE_S", 0.1)
    engines = [await replicas(metrics=metrics(0.95, 320)) for _ in range(2)]
    for engine in engines:
        engine.reply_in_steps(*ANSWER)
    apps = [
        await router(
            *engines,
            policy="cache_aware",
            state=redis.url,
            metrics_interval=0.05,
            health_timeout=0.2,
        )
        for _ in range(2)
    ]
    for app in apps:
        await until(lambda app=app: app.shared.routers == 1 and app.shared.queues_shared)  # type: ignore[union-attr]
        await until(lambda app=app: queue_of(app).door.works)
        knows_sessions(app)
    clients: list[Raw] = []

    async def ask(app: App, name: str, tokens: int, *headers: str) -> None:
        client = await connect(app)
        client.send(post(PATH, body(tokens, text=name), f"x-session-id: {name}", *headers))
        clients.append(client)

    def waiting() -> list[tuple[int, int]]:
        return [(queue_of(app).held, queue_of(app).door.size) for app in apps]

    # A session fills each replica; then new ones wait at the door of each router, and what has
    # low priority and is of a session in progress waits in a lane.
    for number, app in enumerate(apps):
        await ask(app, f"first {number}", 4000)
        await until(lambda: sum(len(engine.received) for engine in engines) == len(clients))
        for other in apps:
            sessions = queue_of(other).door.sessions
            await until(lambda sessions=sessions: sessions.count == len(clients))
    for number, app in enumerate(apps):
        for each in range(3):
            await ask(app, f"new {number} {each}", 3000)
            await ask(app, f"first {number}", 1000 + each, LOW)
    await until(lambda: waiting() == [(3, 3), (3, 3)])
    for engine in engines:
        await break_metrics(engine, fault)
    gone_at = monotonic()
    # Engines go on answering: each gives the next piece of an answer as soon as it is asked.
    for engine in engines:
        for _ in range(2 * len(clients)):
            engine.step()
    answers = await asyncio.gather(*(client.answer() for client in clients))
    assert [status for status, _, _ in answers] == [200] * len(clients)
    for queue in map(queue_of, apps):
        # The engines have said nothing since, and each router's books of the other are empty too.
        assert all(gate.read_at <= gone_at for gate in queue.gates)
        await until(partial(rests, queue))
        assert queue.outcomes["held"] == queue.outcomes["parked"] == 3
        assert queue.outcomes["expired"] == queue.outcomes["gone"] == 0


def rests(queue: Queue) -> bool:
    """No session is in progress, at this router or another, and all gates are idle."""
    sessions = queue.door.sessions
    return sessions.count == sessions.idle_count and all(map(idle, queue.gates))


def idle(gate: object) -> bool:
    """Nothing is counted there, of this router or another."""
    own = ("sent", "sent_tokens", "running", "running_tokens")
    others = ("others_sent", "others_sent_tokens", "others_waiting")
    return not any(getattr(gate, name) for name in own + others)
