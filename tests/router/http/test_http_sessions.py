"""Which session a request belongs to, by headers that clients send of their own accord."""

from __future__ import annotations

import json

import pytest
from http_world import Connect, MakeReplica, MakeRouter, post, sized, until

from router.prompt import Prompt
from router.scheduling.placer import Placement

PATH = "/v1/messages"
CLAUDE = "X-Claude-Code-Session-Id: c"
NAMED: dict[tuple[str, ...], str] = {
    (): "u",
    (CLAUDE,): "c",
    # The sub-agents of a session, where they say who they are.
    (CLAUDE, "X-Claude-Code-Agent-Id: a1"): "c/a1",
    ("x-claude-code-agent-id: a2", "x-claude-code-session-id: c"): "c/a2",
    ("X-Claude-Code-Agent-Id: a1",): "u",
    # The first of the order counts, wherever it stands.
    ("X-Session-Id: s", "Session_Id: f", CLAUDE): "c",
    ("X-Session-Affinity: y", "X-Session-Id: s", "Session_Id: f", "Session-Id: e"): "e",
    ("X-Session-Affinity: y", "X-Session-Id: s", "Session_Id: f"): "f",
    ("X-Session-Affinity: y", "X-Session-Id: s"): "s",
    ("X-Session-Affinity: y", "X-Session-Id:"): "y",
    ("X-Claude-Code-Agent-Id: a1", "X-Session-Id: s"): "s",
    # It may name the request alone.
    ("X-Client-Request-Id: r",): "u",
}


async def test_the_order_of_headers(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = await replicas(model="m")
    engine.reply(sized(b"{}"))
    app = await router(engine)
    keys: list[str] = []
    place = app.placer.place

    def watched(prompt: Prompt, eligible: int, now: float) -> Placement:
        keys.append(prompt.key)
        return place(prompt, eligible, now)

    monkeypatch.setattr(app.placer, "place", watched)
    client = await connect(app)
    body = {
        "model": "m",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "x"}],
        "metadata": {"user_id": "u"},
    }
    for headers in NAMED:
        # The second time the head is known.
        for _ in range(2):
            status, _, _ = await client.ask(post(PATH, json.dumps(body).encode(), *headers))
            assert status == 200
    assert keys == [key for key in NAMED.values() for _ in range(2)]
    # They are passed on.
    sent = engine.received[2 * list(NAMED).index((CLAUDE, "X-Claude-Code-Agent-Id: a1"))]
    assert (sent.header("x-claude-code-session-id"), sent.header("x-claude-code-agent-id")) == (
        "c",
        "a1",
    )


async def test_a_header_that_the_settings_name_comes_first(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(model="m"), session_header="x-mine", policy="session")
    assert (
        min(app.gateway.session_headers, key=app.gateway.session_headers.__getitem__) == b"x-mine"
    )


@pytest.mark.parametrize(
    ("headers", "sessions"),
    [
        ((("X-Claude-Code-Session-Id: c",), ("X-Claude-Code-Session-Id: c",)), 2),
        ((("X-Claude-Code-Session-Id: c", "X-Claude-Code-Agent-Id: a"),) * 2, 1),
        ((("Session-Id: c",), ("Session-Id: c",)), 1),
    ],
    ids=["several agents", "one agent", "one conversation"],
)
async def test_the_queue_takes_no_session_of_several_agents_for_one_conversation(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    headers: tuple[tuple[str, ...], ...],
    sessions: int,
) -> None:
    """Two prompts that have nothing in common, under one session."""
    engine = await replicas(model="m")
    usage = {"prompt_tokens": 800, "completion_tokens": 1, "total_tokens": 801}
    engine.reply(sized(json.dumps({"usage": usage}).encode()))
    app = await router(engine, kv_cache_tokens=100_000)
    door = app.gateway.queue.queue.door
    await until(lambda: door.works)
    client = await connect(app)
    for name, own in zip("ab", headers, strict=True):
        body = {"model": "m", "messages": [{"role": "user", "content": name * 4000}]}
        asked = post("/v1/chat/completions", json.dumps(body).encode(), *own)
        assert (await client.ask(asked))[0] == 200
    assert door.sessions.count == sessions
