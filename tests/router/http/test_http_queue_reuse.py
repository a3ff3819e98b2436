"""What sessions in progress lose of their caches is counted, over real sockets."""

from __future__ import annotations

import json

import pytest
from http_world import Connect, MakeReplica, MakeRouter, post, sized, until
from test_http_queue import LOW, PATH, busy, waits

from router.app import App

TOKENS = 1000


def step(*said: str) -> bytes:
    messages = [{"role": "user", "content": each * TOKENS} for each in said]
    return json.dumps({"model": "m", "messages": messages}).encode()


def answer(prompt: int, cached: int) -> bytes:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return sized(json.dumps({"id": "c", "choices": [], "usage": usage}).encode())


def lost(app: App) -> dict[str, int]:
    return {why: tokens for why, tokens in app.telemetry.reuse_lost.items() if tokens}


@pytest.mark.parametrize("horizon", [60.0, 0.0])
async def test_a_cache_that_was_gone_when_its_session_came_back(
    router: MakeRouter, connect: Connect, replicas: MakeReplica, horizon: float
) -> None:
    engine = await replicas()
    app = await router(engine, kv_cache_tokens=100_000)
    door = app.gateway.queue.queue.door
    await until(lambda: door.works)
    client = await connect(app)
    said = ("abcd",)
    for cached in (0, TOKENS, 0):  # the first; all is there; all is gone
        engine.reply(answer(len(said) * TOKENS, cached))
        door.sessions.set_horizon(horizon)
        asked = post(PATH, step(*said), "x-session-id: one")
        assert (await client.ask(asked))[0] == 200
        said = (*said, "efgh")
    found = lost(app)
    if horizon:
        assert list(found) == ["evicted"]
        assert 1.9 * TOKENS < found["evicted"] <= 2 * TOKENS
    else:  # nobody keeps it for so long
        assert not found


async def test_a_cache_that_was_gone_when_the_wait_was_over(
    router: MakeRouter, connect: Connect, replicas: MakeReplica
) -> None:
    engine = await replicas()
    app = await router(engine, kv_cache_tokens=100_000)
    door = app.gateway.queue.queue.door
    await until(lambda: door.works)
    client = await connect(app)
    engine.reply(answer(TOKENS, 0))
    assert (await client.ask(post(PATH, step("abcd"), "x-session-id: one", LOW)))[0] == 200
    door.sessions.set_horizon(60.0)
    gone = answer(2 * TOKENS, 0)
    engine.received.clear()
    engine.reply_in_steps(b"", gone)
    first = await busy(app, connect, engine)
    client.send(post(PATH, step("abcd", "efgh"), "x-session-id: one", LOW))
    await waits(app)
    for _ in range(2):
        engine.step()
    assert (await first.answer())[0] == 200
    assert (await client.answer())[0] == 200
    found = lost(app)
    assert list(found) == ["waited"]
    assert 0.9 * TOKENS < found["waited"] <= TOKENS
