"""Tenants in the queue: whose turn it is, what a key may ask for, and what is given back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    ScriptedReplica,
    chunk,
    event,
    exchanges,
    post,
    until,
)

from router.app import App
from router.queue.ticket import HIGH, LOW, NORMAL
from router.tenants.isolation_guard import IsolationGuard
from router.tenants.keys import new_key

PATH = "/v1/chat/completions"
KEYS = {name: new_key() for name in ("acme", "acme2", "beta")}


@pytest.fixture
async def steps(replicas: MakeReplica) -> ScriptedReplica:
    replica = await replicas()
    replica.reply_in_steps(SSE_HEAD, chunk(event(choices=[{"delta": {"content": "a"}}])), END)
    return replica


@pytest.fixture
def tenants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """acme has two keys, high priority and room for two requests; beta has nothing of that."""
    monkeypatch.setattr(IsolationGuard, "start", lambda self: None)

    def keys(*names: str) -> list[dict[str, str]]:
        return [
            {"name": name, "sha256": hashlib.sha256(KEYS[name].encode()).hexdigest()}
            for name in names
        ]

    acme = {
        "keys": keys("acme", "acme2"),
        "priority": -1,
        "limits": {"concurrent_requests": 2},
    }
    path = tmp_path / "tenants.yaml"
    path.write_text(yaml.safe_dump({"tenants": {"acme": acme, "beta": {"keys": keys("beta")}}}))
    return str(path)


def ask(raw: Raw, key: str, name: str, *headers: str, **fields: Any) -> None:
    message = {"role": "user", "content": (name + " " * 20_000)[:20_000]}
    asked = {"model": "m", "stream": True, "messages": [message], **fields}
    data = json.dumps(asked).encode()
    raw.send(post(PATH, data, f"authorization: Bearer {KEYS[key]}", *headers))


def tickets(app: App) -> list[tuple[str, int]]:
    found = [each.ticket for each in exchanges(app)]
    return sorted((each.tenant, each.priority) for each in found if each is not None)


def content(replica: ScriptedReplica) -> list[str]:
    return [each.json()["messages"][0]["content"].split()[0] for each in replica.received]


async def test_tenants_take_turns_whatever_their_keys_and_headers(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, tenants: str
) -> None:
    app = await router(steps, tenants=tenants, queue_trust_clients=True)
    names = (("beta", "b1"), ("acme", "a1"), ("acme2", "a2"), ("beta", "b2"), ("beta", "b3"))
    clients = []
    for number, (key, name) in enumerate(names):
        raw = await connect(app)
        ask(raw, key, name, "x-gateway-inference-fairness-id: another")
        clients.append(raw)
        await until(lambda count=number + 1: len(exchanges(app)) == count)  # type: ignore[misc]
        await until(lambda: all(each.ticket is not None for each in exchanges(app)))
    assert {tenant for tenant, _ in tickets(app)} == {"acme", "beta"}
    assert app.gateway.queue.queue.waiting == 4
    for count in range(1, 6):
        await steps.asked(count)
        steps.step()  # its token
        steps.step()  # its end
    for raw in clients:
        assert (await raw.answer())[0] == 200
    assert content(steps) == ["b1", "a1", "b2", "a2", "b3"]


async def test_a_key_asks_for_no_better_priority_than_it_may(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, tenants: str
) -> None:
    app = await router(steps, tenants=tenants)
    clients = []
    for key, priority in (("acme", -5), ("beta", -5), ("beta", 5)):
        raw = await connect(app)
        ask(raw, key, key, priority=priority)
        clients.append(raw)
    await until(lambda: len(tickets(app)) == 3)
    assert tickets(app) == [("acme", HIGH), ("beta", NORMAL), ("beta", LOW)]
    for raw in clients:
        raw.close()


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize("how", ["vanished", "expired", "refused"])
async def test_what_leaves_the_queue_gives_back_what_it_had_reserved(
    router: MakeRouter, connect: Connect, steps: ScriptedReplica, tenants: str, how: str
) -> None:
    settings = {"vanished": {}, "expired": {"queue_timeout": 0.1}, "refused": {"queue_limit": 0}}
    app = await router(steps, tenants=tenants, **settings[how])
    clients = [await connect(app)]
    ask(clients[0], "beta", "b1")
    await steps.asked(1)
    for _ in range(5):  # more than may be in progress at once
        raw = await connect(app)
        ask(raw, "acme", "a1", priority=5)
        if how == "vanished":
            await until(lambda: app.gateway.queue.queue.waiting == 1)
            raw.vanish()
            await until(lambda: app.gateway.queue.queue.waiting == 0)
            continue
        status, headers, answer = await raw.answer()
        assert status == (503 if how == "expired" else 429)
        assert json.loads(answer)["error"]["code"] == "overloaded"
        assert "retry-after" in headers
    for _ in range(2):
        steps.step()
    assert (await clients[0].answer())[0] == 200
