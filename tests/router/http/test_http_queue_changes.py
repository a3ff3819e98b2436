"""What changes while requests wait: settings, engines' metrics, their memory, the fleet."""

from __future__ import annotations

import msgspec
import pytest
from http_world import Connect, MakeReplica, MakeRouter, ScriptedReplica, post, until
from test_http_queue import ANSWER, LOW, PATH, body, busy, parked, waits

from router.app import App
from router.reload import Reloader


@pytest.fixture
async def steps(replicas: MakeReplica) -> ScriptedReplica:
    """Answers with a head at once, a token after one step, its end after another."""
    replica = await replicas()
    replica.reply_in_steps(*ANSWER)
    return replica


def metrics(usage: float, blocks: int) -> bytes:
    """As vLLM tells them, with blocks of 16 tokens."""
    labels = '{engine="0",model_name="m"}'
    return (
        f"vllm:num_requests_running{labels} 1\n"
        f"vllm:kv_cache_usage_perc{labels} {usage}\n"
        f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1\n'
    ).encode()


async def reload(app: App, **changed: object) -> None:
    """As on SIGHUP: the settings as they are read now differ in these."""
    fields = {name: getattr(app.settings, name) for name in app.settings.__struct_fields__}
    now = type(app.settings)(**{**fields, **changed})  # type: ignore[arg-type]
    await Reloader(app.settings, lambda: now).router(app)


def capacity(app: App) -> float:
    return app.fleet.loads[0].kv_capacity


async def test_the_door_turned_off_lets_in_what_waits_there(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, kv_cache_tokens=5000)
    first, second = await parked(app, connect, steps)
    await reload(app, queue_timeout=600.0)
    assert app.gateway.queue.queue.waiting == 1
    await reload(app, queue_door=0.0)
    await steps.asked(2)
    assert app.gateway.queue.kv_wanted(0) is None
    for _ in range(4):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await second.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_limits_hold_from_the_next_moment_on_for_what_waits_and_what_comes(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica
) -> None:
    app = await router(steps, prefill_rate=1000)
    first = await busy(app, connect, steps)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="low"), LOW))
    await waits(app)
    await reload(app, queue_limit=1)
    more = await connect(app)
    assert (await more.ask(post(PATH, body(1000, text="more"), LOW)))[0] == 429
    await reload(app, ttft_limit=0.5)
    hasty = await connect(app)
    status, _, said = await hasty.ask(post(PATH, body(10, text="hasty")))
    assert (status, b"overloaded" in said) == (429, True)
    await reload(app, ttft_limit=0.0, queue_timeout=0.05)
    assert (await low.answer())[0] == 503
    await reload(app, queue_timeout=0.0)
    patient = await connect(app)
    patient.send(post(PATH, body(10, text="patient")))
    await waits(app)
    steps.step()
    await steps.asked(2)
    for _ in range(3):
        steps.step()
    assert (await first.answer())[0] == 200
    assert (await patient.answer())[0] == 200


async def test_an_engine_that_comes_back_with_more_memory_has_room_for_who_waits(
    router: MakeRouter, connect: Connect, replicas: MakeReplica
) -> None:
    grows = await replicas(metrics=metrics(0.5, 312))
    grows.reply_in_steps(*ANSWER)
    app = await router(grows, metrics_interval=0.05)
    await until(lambda: capacity(app) == 312 * 16)
    first, second = await parked(app, connect, grows)
    grows.metrics = metrics(0.1, 1000)
    await until(lambda: capacity(app) == 16_000)
    await grows.asked(2)
    # ... and with less than is in progress: nothing breaks, and the next one waits.
    grows.metrics = metrics(0.9, 100)
    await until(lambda: capacity(app) == 1600)
    third = await connect(app)
    third.send(post(PATH, body(3000, text="three"), "x-session-id: three"))
    await waits(app)
    assert app.gateway.queue.kv_wanted(0) > 1.0  # type: ignore[operator]
    app.gateway.queue.queue.door.sessions.set_horizon(0.0)
    for _ in range(4):
        grows.step()
    assert (await first.answer())[0] == 200
    assert (await second.answer())[0] == 200
    await until(lambda: not app.gateway.queue.queue.waiting or _forget(app))
    for _ in range(2):
        grows.step()
    assert (await third.answer())[0] == 200


def _forget(app: App) -> bool:
    """Nobody is known to come back from a pause: the memory is the next session's."""
    queue = app.gateway.queue.queue
    queue.door.sessions.set_horizon(0.0)
    queue.release(0.0)
    return not queue.waiting


async def test_a_replica_that_joins_has_room_for_who_waits_at_the_door(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, replicas: MakeReplica
) -> None:
    app = await router(steps, kv_cache_tokens=5000)
    first, second = await parked(app, connect, steps)
    other = await replicas()
    other.reply_in_steps(*ANSWER)
    app.fleet.add(other.url)
    await other.asked(1)
    for replica in (steps, other):
        for _ in range(2):
            replica.step()
    assert (await first.answer())[0] == 200
    assert (await second.answer())[0] == 200


async def test_a_replica_in_the_place_of_one_that_left_is_not_taken_for_full(
    router: MakeRouter,
    connect: Connect,
    replicas: MakeReplica,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.queue.gate.STALE_S", 1000.0)
    full = await replicas(metrics=metrics(0.95, 1000))
    full.reply_in_steps(*ANSWER)
    app = await router(full, metrics_interval=0.05)
    queue = app.gateway.queue.queue
    first = await busy(app, connect, full)
    low = await connect(app)
    low.send(post(PATH, body(1000, text="low"), LOW))
    await waits(app)
    await until(lambda: queue.gate(0).usage == 0.95)
    low.close()
    for _ in range(2):
        full.step()
    assert (await first.answer())[0] == 200
    await until(lambda: not queue.gate(0).running)
    app.fleet.remove(full.url)
    empty = await replicas()
    empty.reply_in_steps(*ANSWER)
    app.fleet.add(empty.url)
    await until(lambda: app.fleet.usable)
    app.fleet.loads[0].kv_capacity = 16_000.0
    clients = []
    for number in range(2):  # the second would wait for the memory of the one before
        client = await connect(app)
        client.send(post(PATH, body(100, text=str(number)), LOW))
        await empty.asked(number + 1)
        empty.step()
        clients.append(client)
    for _ in range(2):
        empty.step()
    for client in clients:
        assert (await client.answer())[0] == 200


async def test_settings_wait_for_a_certificate_that_can_be_read(
    replicas: MakeReplica,
    router: MakeRouter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    complaints: list[str],
) -> None:
    complaints.append("all stays as it was")
    app = await router(await replicas())
    now = msgspec.structs.replace(app.settings, max_head=1024)
    reloader = Reloader(app.settings, lambda: now)

    def fails() -> None:
        raise FileNotFoundError(2, "no such file")

    with monkeypatch.context() as patched:
        patched.setattr(app.front, "reload_certificate", fails)
        await reloader.router(app)
    assert "all stays as it was" in caplog.text
    assert app.gateway.settings.max_head != 1024
    await reloader.router(app)
    assert app.gateway.settings.max_head == 1024
    with caplog.at_level("INFO"):
        await reloader.router(app)
    assert "changed: none" in caplog.text


async def test_what_is_known_of_heads_is_read_by_the_settings_that_hold_now(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas())
    client = await connect(app)
    asked = post(PATH, body(), "X-Warmroute-Explain: 1", f"X-Long: {'x' * 2000}")
    for _ in range(2):
        status, headers, _ = await client.ask(asked)
        assert (status, "x-warmroute-replica" in headers) == (200, False)
    await reload(app, explain_headers=True)
    status, headers, _ = await client.ask(asked)
    assert (status, "x-warmroute-replica" in headers) == (200, True)
    await reload(app, explain_headers=False)
    for _ in range(2):
        assert (await client.ask(asked))[0] == 200
    await reload(app, max_head=1024)
    assert (await client.ask(asked))[0] == 431
