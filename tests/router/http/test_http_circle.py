"""A router that is its own replica, and what is passed on in Via."""

from __future__ import annotations

import json

import httpx
from http_world import CHAT, Connect, MakeReplica, MakeRouter, get, post

from router.fleet.health import HealthState
from router.identity import PSEUDONYM


async def test_a_request_that_comes_back_is_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    status, _, _ = await client.ask(get("/x", "Via: 1.0 first, 1.1 warmroute-other", "A: b"))
    assert status == 200
    via = [value for name, value in replica.received[0].headers if name.lower() == "via"]
    assert via == ["1.0 first, 1.1 warmroute-other", f"1.1 {PSEUDONYM}"]
    status, headers, body = await client.ask(
        post("/v1/chat/completions", CHAT, f"Via: 1.0 first, 1.1 {PSEUDONYM}")
    )
    assert (status, headers["connection"]) == (508, "close")
    error = json.loads(body)["error"]
    assert error["code"] == 508
    assert "Take that address out of replicas" in error["message"]
    assert len(replica.received) == 1


async def test_a_router_in_its_own_fleet_gets_nothing(
    replicas: MakeReplica, router: MakeRouter
) -> None:
    replica = await replicas()
    app = await router(replica)
    itself = app.fleet.add(f"http://127.0.0.1:{app.port}")
    assert await app.fleet.until(lambda: itself.health.state is HealthState.UNHEALTHY, 20)
    assert "leads back to this router itself: take it out of replicas" in itself.health.reason
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.port}") as client:
        for _ in range(4):
            answer = await client.post("/v1/chat/completions", content=CHAT)
            assert answer.status_code == 200
    assert not itself.faults.connect
    # The books of this test's router balance when its probes of itself have ended.
    app.fleet.remove(itself.url)
