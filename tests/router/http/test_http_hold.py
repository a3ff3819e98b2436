"""Requests for a model that is asleep, starts again or is scaled from zero."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    Received,
    ScriptedReplica,
    books,
    get,
    post,
    sized,
    until,
)

from router.app import App
from router.config import ConfigError, Settings, load
from router.fleet.fleet import Fleet
from router.http.hold import Holding
from router.telemetry.telemetry import Live

PATH = "/v1/chat/completions"

SLEEPS = b"""# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="weights_offloaded"} 1.0
vllm:num_requests_running{engine="0",model_name="m"} 0.0
"""
AWAKE = SLEEPS.replace(b'"awake"} 0.0', b'"awake"} 1.0').replace(
    b'offloaded"} 1.0', b'offloaded"} 0.0'
)


@pytest.fixture
async def sleeper(replicas: MakeReplica) -> ScriptedReplica:
    """Wakes when it is asked to."""
    replica = await replicas()
    replica.metrics = SLEEPS

    async def handler(
        request: Received, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if request.target == "/wake_up":
            replica.metrics = AWAKE
        writer.write(sized(b'{"ok":true}'))

    replica.handler = handler
    return replica


def held(app: App) -> Callable[[], object]:
    return lambda: app.gateway.holding.models


async def test_a_request_wakes_its_model_and_is_served(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=30.0, wake_replicas=True, metrics_interval=0.05)
    await until(lambda: app.fleet.members()[0].asleep)
    clients = [await connect(app) for _ in range(3)]
    for client in clients:
        client.send(post(PATH, CHAT))
    for client in clients:
        assert (await client.answer())[0] == 200
    # However many wait, it is woken once.
    assert [request.target for request in sleeper.received].count("/wake_up") == 1
    assert app.gateway.holding.models == {}


async def test_a_model_that_comes_back_gets_what_waited(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, hold_timeout=30.0)
    name = app.fleet.members()[0].url
    app.fleet.drain(name)
    client, other = await connect(app), await connect(app)
    client.send(post(PATH, CHAT))
    other.send(post("/v1/embeddings", b'{"model":"m","input":"x"}'))
    await until(lambda: app.gateway.holding.models == {"m": 2})
    # Such a router is ready: what is sent here waits.
    assert (await (await connect(app)).ask(get("/health")))[0] == 200
    assert app.telemetry.live.held == {"m": 2}
    app.fleet.undrain(name)
    assert [(await each.answer())[0] for each in (client, other)] == [200, 200]
    assert app.gateway.holding.models == {}


async def test_nobody_waits_for_longer_than_the_setting(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=0.05, metrics_interval=0.05)
    await until(lambda: app.fleet.members()[0].asleep)
    status, headers, _ = await (await connect(app)).ask(post(PATH, CHAT))
    assert status == 503
    assert "retry-after" in headers
    # A name that nobody will ever serve is told at once.
    status, _, _ = await (await connect(app)).ask(post(PATH, CHAT.replace(b'"m"', b'"none"')))
    assert status == 404


async def test_a_client_that_leaves_is_held_no_longer(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=30.0, metrics_interval=0.05)
    await until(lambda: app.fleet.members()[0].asleep)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await until(held(app))
    client.vanish()
    await until(lambda: not app.gateway.holding.models)
    await until(lambda: not any(books(app).values()))


async def test_the_end_of_the_router_lets_them_go(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=30.0, metrics_interval=0.05, drain_timeout=20.0)
    await until(lambda: app.fleet.members()[0].asleep)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await until(held(app))
    stopping = asyncio.ensure_future(app.front.stop())
    assert (await client.answer())[0] == 503
    await stopping


async def test_no_more_wait_than_queue_limit(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=30.0, metrics_interval=0.05, queue_limit=1)
    await until(lambda: app.fleet.members()[0].asleep)
    first = await connect(app)
    first.send(post(PATH, CHAT))
    await until(held(app))
    assert (await (await connect(app)).ask(post(PATH, CHAT)))[0] == 503


async def test_a_limit_that_changes_counts_for_what_is_held(
    sleeper: ScriptedReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(sleeper, hold_timeout=30.0, metrics_interval=0.05, queue_limit=1)
    await until(lambda: app.fleet.members()[0].asleep)
    app.gateway.adopt(msgspec.structs.replace(app.settings, queue_limit=0))
    assert (await (await connect(app)).ask(post(PATH, CHAT)))[0] == 503


async def test_held_bodies_leave_memory_for_models_that_are_served(
    sleeper: ScriptedReplica, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    awake = await replicas(model="other")
    memory = 400_000
    app = await router(
        *(sleeper, awake),
        hold_timeout=30.0,
        metrics_interval=0.05,
        body_memory=memory,
        max_body=memory // 4,
    )
    await until(lambda: app.fleet.find(sleeper.url).asleep)
    long = CHAT.replace(b'"hello"', b'"' + b"x" * (memory // 10) + b'"')
    assert len(long) > memory // 10
    clients = [await connect(app) for _ in range(8)]
    for client in clients:
        client.send(post(PATH, long))
    # Each takes its body, and as much for its prompt.
    refused = [asyncio.ensure_future(client.answer()) for client in clients]
    await until(lambda: sum(each.done() for each in refused) == 6)
    assert {each.result()[0] for each in refused if each.done()} == {503}
    assert app.gateway.live.body_bytes > memory // 4
    answer = await (await connect(app)).ask(post(PATH, long.replace(b'"m"', b'"other"')))
    assert answer[0] == 200
    for each in refused:
        each.cancel()


async def test_a_name_that_nobody_has_is_told_once_that_is_known(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    await replica.stop()
    app = await router(replica, hold_timeout=30.0, lora_resolver=False)
    unknown, known = await connect(app), await connect(app)
    unknown.send(post(PATH, CHAT.replace(b'"m"', b'"none"')))
    known.send(post(PATH, CHAT))
    # Names that clients may have made up are no labels.
    await until(lambda: app.gateway.holding.models == {"other": 2})
    await replica.start()
    assert (await unknown.answer())[0] == 404
    assert (await known.answer())[0] == 200


async def test_the_time_it_was_held_is_not_time_in_the_queue(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, hold_timeout=30.0, ttft_limit=0.1)
    name = app.fleet.members()[0].url
    app.fleet.drain(name)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await until(held(app))
    await asyncio.sleep(0.3)  # what it waits for takes longer than the limit
    app.fleet.undrain(name)
    assert (await client.answer())[0] == 200


async def test_one_task_looks_for_all_that_wait() -> None:
    fleet = Fleet(Settings(replicas=()))
    fleet.add("http://127.0.0.1:1", models=("m",))
    holding = Holding(Settings(hold_timeout=30.0), fleet, Live())
    looks = 0
    gone_on: list[int] = []

    def ready() -> bool:
        nonlocal looks
        looks += 1
        return False

    for number in range(100):
        holding.hold("m", 1, (1, 1), ready, partial(gone_on.append, number))
    assert holding.models == {"m": 100}
    for number in range(10):
        (fleet.undrain if number % 2 else fleet.drain)("http://127.0.0.1:1")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not looks
    assert not gone_on
    holding.release()
    assert gone_on == list(range(100))
    assert holding.models == {}


def test_waking_without_waiting_is_refused() -> None:
    with pytest.raises(ConfigError, match="hold_timeout"):
        load({"replicas": ["http://127.0.0.1:1"], "wake_replicas": "true"}, {})
