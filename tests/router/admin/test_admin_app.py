"""What the admin port tells."""

from __future__ import annotations

import re

import pytest
from admin_world import CHANGE, World
from prometheus_client.parser import text_string_to_metric_families

from router.admin.parts import Phase

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000/x"


async def test_healthz_says_that_the_loop_turns() -> None:
    async with World().client() as client:
        answer = await client.get("/healthz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok"}


async def test_readyz_gives_its_reasons() -> None:
    world = World(A, B)
    async with world.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json() == {
            "ready": True,
            "reasons": [],
            "replicas": 2,
            "usable": 2,
            "state": "alone",
            "limits": "off",
        }
        for phase in (Phase.STARTING, Phase.DRAINING):
            world.phase = phase
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["reasons"] == [f"the router is {phase}"]
        world.phase = Phase.SERVING
        for replica in world.fleet.members():
            world.fleet.drain(replica.url)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reasons"] == ["none of 2 replicas is usable"]
    async with World().client() as client:
        answer = await client.get("/readyz")
        assert answer.json()["reasons"] == ["no replica in the fleet"]


async def test_metrics_are_prometheus_text() -> None:
    world = World(A, B)
    world.finish("r1")
    async with world.client() as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {f.name: f for f in text_string_to_metric_families(answer.text)}
    assert families["warmroute_requests"].samples[0].value == 1
    assert {s.labels["replica"] for s in families["warmroute_in_flight"].samples} == {
        "10.0.0.1:8000",
        "10.0.0.2:8000/x",
    }


async def test_replicas_are_told_with_what_is_known_of_them() -> None:
    world = World(A, B)
    world.finish("old", delivered=0)
    world.parts.recent.sample(world.telemetry.ledgers())
    world.finish("new", delivered=900)
    world.engine_told(0, running=2.0, waiting=1.0, queries=1000.0, hits=400.0, kv_usage=0.5)
    one = world.fleet.members()[0]
    one.kv_tokens, one.kv_tokens_known = 1000, True
    world.hold(0, 5)
    world.fleet.loads[0].in_flight = 3
    world.fleet.failed(1, "connect", 0.0)
    async with world.client() as client:
        first, second = (await client.get("/replicas")).json()
    assert first["name"] == "10.0.0.1:8000"
    assert first["url"] == A
    assert (first["state"], first["usable"], first["breaker"]) == ("ready", True, "closed")
    assert (first["hit_rate"], first["hit_rate_recent"]) == (0.45, 0.9)
    assert (first["engine_hit_rate"], first["engine_running"]) == (0.4, 2.0)
    assert (first["engine_waiting"], first["engine_kv_usage"]) == (1.0, 0.5)
    assert 0 <= first["metrics_age"] < 60
    assert first["index_share"] == 0.5
    assert (first["kv_cache_tokens"], first["kv_cache_known"]) == (1000, True)
    assert first["kv_cache_assumed"] is None
    assert (second["kv_cache_tokens"], second["kv_cache_known"]) == (None, False)
    assert (second["kv_cache_assumed"], second["index_share"]) == (2_000_000, None)
    assert first["in_flight"] == 3
    assert second["name"] == "10.0.0.2:8000/x"
    assert (second["state"], second["usable"]) == ("unhealthy", False)
    assert "could not connect" in second["last_error"]
    none = dict.fromkeys(("timeout", "silent", "died", "status", "engine"), 0)
    assert second["faults"] == {"connect": 1, **none}
    assert (second["hit_rate"], second["hit_rate_recent"], second["metrics_age"]) == (
        None, None, None,
    )  # fmt: skip


async def test_requests_are_explained() -> None:
    world = World(A, B)
    world.finish("r/1")
    world.finish("r2", slot=1)
    async with world.client() as client:
        latest = (await client.get("/explain")).json()
        assert [one["request_id"] for one in latest] == ["r2", "r/1"]
        one = (await client.get("/explain/r%2F1")).json()
        assert one["request_id"] == "r/1"
        assert one["delivered"] == 800
        assert [c["replica"] for c in one["candidates"]] == ["10.0.0.1:8000", "10.0.0.2:8000/x"]
        missing = await client.get("/explain/r3")
        assert missing.status_code == 404
        assert "'r3'" in missing.json()["error"]


async def test_the_list_is_short() -> None:
    world = World(A)
    for number in range(80):
        world.finish(f"r{number}")
    async with world.client() as client:
        latest = (await client.get("/explain")).json()
    assert len(latest) == 50
    assert latest[0]["request_id"] == "r79"


async def test_replicas_are_drained_and_undrained() -> None:
    world = World(A, B)
    async with world.client() as client:
        answer = await client.post("/replicas/10.0.0.2:8000/x/drain", headers=CHANGE)
        assert answer.json() == [{"replica": "10.0.0.2:8000/x", "ok": True}]
        assert world.fleet.usable == 0b01
        assert (await client.get("/replicas")).json()[1]["state"] == "draining"
        await client.post("/replicas/all/drain", headers=CHANGE)
        assert world.fleet.usable == 0
        await client.post("/replicas/10.0.0.1:8000/undrain", headers=CHANGE)
        assert world.fleet.usable == 0b01


async def test_a_name_that_begins_like_another_is_told_apart() -> None:
    world = World("http://10.0.0.2:8000", B)
    async with world.client() as client:
        await client.post("/replicas/10.0.0.2:8000/x/drain", headers=CHANGE)
        assert world.fleet.usable == 0b01
        await client.post("/replicas/10.0.0.2:8000/drain", headers=CHANGE)
        assert world.fleet.usable == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/replicas/10.9.9.9:8000/sleep", "10.0.0.1:8000"),
        ("/replicas/10.0.0.1:8000/explode", "reset_prefix_cache"),
        ("/replicas/10.0.0.1:8000/v1/chat/completions", "reset_prefix_cache"),
        ("/replicas/10.0.0.1:8000/../../sleep", "there are"),
        ("/replicas/sleep", "there are"),
    ],
)
async def test_what_is_not_there_is_named_with_what_is(path: str, said: str) -> None:
    async with World(A).client() as client:
        answer = await client.post(path, headers=CHANGE)
    assert answer.status_code == 404
    assert said in answer.json()["error"] or answer.json()["error"] == "Not Found"


async def test_an_empty_fleet_cannot_be_called() -> None:
    async with World().client() as client:
        answer = await client.post("/replicas/all/sleep", headers=CHANGE)
    assert answer.status_code == 404


async def test_unknown_paths_and_methods_are_json_errors() -> None:
    async with World().client() as client:
        assert (await client.get("/nothing")).json() == {"error": "Not Found"}
        assert (await client.get("/replicas/x/sleep")).status_code == 405
        assert (await client.put("/replicas", headers=CHANGE)).status_code == 405


async def test_the_page_may_run_its_own_files_only() -> None:
    async with World(A).client(key="k") as client:
        answer = await client.get("/")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        script = await client.get("/console/app.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        named = re.findall(r'from "\./(.*?)"', script.text)
        texts = [answer.text, script.text]
        texts += [(await client.get(f"/console/{name}")).text for name in named]
        assert len(texts) == 13
        for name in ("../app.py", "nothing.js", "%2e%2e/app.py"):
            assert (await client.get(f"/console/{name}")).status_code in (401, 404)
    for text in texts:
        # Nothing is fetched from elsewhere, and nothing a client wrote becomes markup.
        assert not re.search(r"""(src|href|import|url)\s*[=(]?\s*["']?(https?:)?//""", text)
        assert "innerHTML" not in text
        assert 'style="' not in text


async def test_replicas_are_registered_and_let_go() -> None:
    world = World(A)
    async with world.client(key="k") as client:
        headers = {**CHANGE, "authorization": "Bearer k"}
        assert (await client.post("/replicas", json={"url": B}, headers=CHANGE)).status_code == 401
        answer = await client.post("/replicas", json={"url": B}, headers=headers)
        assert (answer.status_code, answer.json()["name"]) == (201, "10.0.0.2:8000/x")
        # Again, however it is spelled: it is there, and may say what it serves.
        again = {"url": B + "/", "models": ["m"]}
        answer = await client.post("/replicas", json=again, headers=headers)
        assert (answer.status_code, answer.json()["models"]) == (200, ["m"])
        assert [r.name for r in world.fleet.members()] == ["10.0.0.1:8000", "10.0.0.2:8000/x"]
        answer = await client.delete("/replicas/10.0.0.2:8000/x", headers=headers)
        assert (answer.status_code, answer.json()) == (
            200,
            {"replica": "10.0.0.2:8000/x", "ok": True},
        )
        answer = await client.request("DELETE", "/replicas", json={"url": A}, headers=headers)
        assert answer.status_code == 200
        assert world.fleet.members() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/replicas", b"{}", 400),
        ("POST", "/replicas", b'{"url":5}', 400),
        ("POST", "/replicas", b'{"url":"ftp://x"}', 400),
        ("POST", "/replicas", b'{"url":"http://x:1","modls":[]}', 400),
        ("POST", "/replicas", b"\xff", 400),
        ("DELETE", "/replicas", b'{"url":"http://x:1"}', 404),
        ("DELETE", "/replicas/nobody", b"", 404),
    ],
)
async def test_a_registration_that_cannot_be_is_refused(
    method: str, path: str, body: bytes, status: int
) -> None:
    world = World(A)
    async with world.client() as client:
        answer = await client.request(method, path, content=body, headers=CHANGE)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert len(world.fleet.members()) == 1


async def test_the_role_of_one_that_registers_is_told_and_may_change() -> None:
    world = World(A)
    url = "http://10.0.0.9:8000"
    async with world.client() as client:
        for given, role in (("prefill", "prefill"), (None, "prefill"), ("both", "both")):
            body = {"url": url} | ({"role": given} if given else {})
            answer = await client.post("/replicas", json=body, headers=CHANGE)
            assert answer.json()["role"] == role
        answer = await client.post("/replicas", json={"url": url, "role": "x"}, headers=CHANGE)
        assert answer.status_code == 400
        roles = [one["role"] for one in (await client.get("/replicas")).json()]
    assert roles == ["decode", "both"]


async def test_what_discovery_found_is_not_let_go_here() -> None:
    world = World(A)
    world.fleet.members()[0].by_discovery = True
    async with world.client() as client:
        answer = await client.delete("/replicas/10.0.0.1:8000", headers=CHANGE)
    assert answer.status_code == 409
    assert "drain" in answer.json()["error"]
    assert len(world.fleet.members()) == 1


async def test_a_sleeping_replica_is_told_as_one() -> None:
    world = World(A, B)
    world.fleet.members()[0].asleep = True
    world.fleet.ready(world.fleet.members()[0])
    async with world.client() as client:
        states = [(r["state"], r["usable"]) for r in (await client.get("/replicas")).json()]
        assert (await client.get("/readyz")).json()["usable"] == 1
    assert states == [("sleeping", True), ("ready", True)]
