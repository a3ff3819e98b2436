from __future__ import annotations

import json

import httpx
import pytest
from http_world import Connect, MakeReplica, MakeRouter, post, sized, until

from router.admin.server import AdminServer
from router.app import App

PATH = "/v1/chat/completions"


def chat(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


def answer(prompt: int, cached: int) -> bytes:
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": 5, "prompt_tokens_details": details}
    return sized(json.dumps({"choices": [], "usage": usage}).encode())


@pytest.fixture(autouse=True)
def real_admin(router: MakeRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The router of these tests has its admin port."""
    monkeypatch.setattr("router.app.AdminServer", AdminServer)


async def admin(app: App, path: str) -> httpx.Response:
    """What the admin port answers."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.admin.port}") as client:
        return await client.get(path)


async def test_what_another_policy_would_have_got(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    two = [await replicas(), await replicas()]
    for replica in two:
        replica.reply(answer(1000, 0))
    shadows = ("consistent_hash",)
    app = await router(*two, policy="round_robin", shadow_policies=shadows, replica_hour_price=2.0)
    client = await connect(app)
    for _ in range(4):
        client.send(post(PATH, chat("the same " * 500)))
        assert (await client.answer())[0] == 200
    assert app.shadows is not None
    control = app.shadows.control
    await until(lambda: control.rolling.total.requests == 4)
    report = (await admin(app, "/shadows")).json()
    live, other = report["policies"]
    assert (live["policy"], live["live"]) == ("round_robin", True)
    assert (other["policy"], other["live"]) == ("consistent_hash", False)
    # Round robin met two empty caches, the hash one.
    assert live["predicted_hit_rate"] == pytest.approx(2 * 0.98 / 4, abs=0.02)
    assert other["predicted_hit_rate"] == pytest.approx(3 * 0.98 / 4, abs=0.03)
    assert other["saved"]["money"] < 0.0
    assert report["by_cache"] == {"tokens": 0, "replica_seconds": 0.0, "money": 0.0}
    assert not report["trusted"]
    text = (await admin(app, "/metrics")).text
    for line in (
        'warmroute_shadow_prompt_tokens_total{policy="consistent_hash"} 4000',
        'warmroute_shadow_delivered_tokens_total{policy="round_robin"} 0',
        "warmroute_shadow_left_out_total 0",
        "warmroute_shadow_trusted 0",
    ):
        assert line in text


async def test_without_shadows_there_are_none(replicas: MakeReplica, router: MakeRouter) -> None:
    app = await router(await replicas())
    assert app.placer.listener is None
    found = await admin(app, "/shadows")
    assert found.status_code == 404
    assert "set shadow_policies" in found.json()["error"]
