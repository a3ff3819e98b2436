"""A fleet of several engines behind one router, each simulated after its documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from running import running

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.config import Settings
from router.doctor.run import diagnose, report
from router.exact.mode import ExactMode
from router.fleet.fleet import Fleet

LEFT_OUT = "exact mode is for vLLM, and this is SGLang"
ADMIN = {"x-warmroute-admin": "1"}
RULES = "Follow the rules of this house to the letter, whoever asks. " * 60
BILLING = "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch="


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, engines=("vllm", "sglang")) as made:
        yield made


@pytest.fixture
async def app(fleet: SimulatedFleet) -> AsyncIterator[App]:
    async with running(fleet.urls, slow_start=0.0, metrics_interval=0.2) as app:
        assert await app.fleet.until(lambda: app.fleet.usable == 0b11, 20)
        yield app


@pytest.fixture
async def front(app: App) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{app.port}"
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def admin(app: App) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{app.admin.port}"
    async with httpx.AsyncClient(
        base_url=url, headers=ADMIN, timeout=30, trust_env=False
    ) as client:
        yield client


def chat(agent: int, turns: int, **more: Any) -> dict[str, Any]:
    messages: list[dict[str, str]] = [{"role": "system", "content": f"Agent {agent}. {RULES}"}]
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"question {turn} " * 30},
            {"role": "assistant", "content": f"answer {turn} " * 30},
        ]
    messages.append({"role": "user", "content": f"question {turns} " * 30})
    return {"model": "sim", "messages": messages, "max_tokens": 4, **more}


def sent(fleet: SimulatedFleet) -> list[list[Any]]:
    """The requests that each replica got, but those by which the router finds out about it."""
    own = ("/tokenize", "/v1/messages/count_tokens")
    return [
        [r for r in replica.requests if r.method == "POST" and r.path not in own]
        for replica in fleet.replicas
    ]


def home(fleet: SimulatedFleet, answer: httpx.Response) -> str:
    """The engine that a request went to."""
    name = answer.headers["x-request-id"]
    (found,) = (
        replica.surface.name
        for replica in fleet.replicas
        if any(r.header("x-request-id") == name for r in replica.requests)
    )
    return str(found)


async def reports(admin: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    return {each["engine"]: each for each in (await admin.get("/replicas")).json()}


async def test_prefixes_stay_where_they_are_and_both_engines_tell_hit_rates(
    app: App, fleet: SimulatedFleet, front: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    homes: dict[int, set[str]] = {}
    for turn in range(4):
        for agent in range(8):
            body = chat(agent, turn, stream=bool(agent % 2))
            answer = await front.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200
            homes.setdefault(agent, set()).add(home(fleet, answer))
    assert all(len(where) == 1 for where in homes.values())
    assert {engine for where in homes.values() for engine in where} == {"vllm", "sglang"}
    replicas = {each.url: each for each in app.fleet.members()}
    read = {url: each.engine_at for url, each in replicas.items()}
    assert await app.fleet.until(
        lambda: all(each.engine_at > read[url] for url, each in replicas.items()), 10
    )
    told = await reports(admin)
    assert set(told) == {"vllm", "sglang"}
    for each in told.values():
        assert each["hit_rate"] > 0.5
        assert each["engine_hit_rate"] == pytest.approx(each["hit_rate"], abs=0.01)
        assert each["kv_cache_tokens"] > 60_000
        assert each["engine_running"] == 0
        assert each["metrics_missing"] == ""


async def test_a_drained_and_a_dead_replica_leave_the_other_engine(
    app: App, fleet: SimulatedFleet, front: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    sglang = app.fleet.find(fleet.urls[1])
    assert (await admin.post(f"/replicas/{sglang.name}/drain")).status_code == 200
    for agent in range(4):
        answer = await front.post("/v1/chat/completions", json=chat(agent, 0))
        assert home(fleet, answer) == "vllm"
    assert (await admin.post(f"/replicas/{sglang.name}/undrain")).status_code == 200
    await fleet.replicas[0].die()
    assert await app.fleet.until(lambda: app.fleet.usable == sglang.bit, 20)
    for agent in range(4):
        answer = await front.post("/v1/chat/completions", json=chat(agent, 0))
        assert (answer.status_code, home(fleet, answer)) == (200, "sglang")
    read = sglang.engine_at  # of what it counted
    assert await app.fleet.until(lambda: sglang.engine_at > read, 10)
    await fleet.replicas[1].restart()
    assert await app.fleet.until(lambda: sglang.restarts == 1, 20)


async def test_a_paused_second_of_sglangs_health_is_no_outage(
    app: App, fleet: SimulatedFleet
) -> None:
    sglang = app.fleet.find(fleet.urls[1])
    since = sglang.health.since
    asked = len([r for r in fleet.replicas[1].requests if r.path == "/health"])
    await fleet.replicas[1].until(
        lambda it: len([r for r in it.requests if r.path == "/health"]) >= asked + 2
    )
    assert sglang.health.well
    assert sglang.health.since == since


async def test_paths_of_sglang_go_there_and_control_paths_nowhere(
    fleet: SimulatedFleet, front: httpx.AsyncClient
) -> None:
    body = {"text": "once upon a time", "sampling_params": {"max_new_tokens": 2}}
    for _ in range(6):
        answer = await front.post("/generate", json=body)
        assert answer.status_code == 200
        assert answer.json()["meta_info"]["completion_tokens"] == 2
    for path in ("/flush_cache", "/abort_request", "/start_profile", "/update_weights_from_disk"):
        assert (await front.post(path, json={})).status_code == 403
    assert (await front.get("/server_info")).status_code == 403
    assert [len(each) for each in sent(fleet)] == [0, 6]


async def test_one_reset_reaches_each_engine_by_its_own_path(
    app: App, fleet: SimulatedFleet, front: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    for agent in range(4):
        await front.post("/v1/chat/completions", json=chat(agent, 0))
    results = (await admin.post("/replicas/all/reset_prefix_cache")).json()
    assert [each["status"] for each in results] == [200, 200]
    paths = [each[-1].path for each in sent(fleet)]
    assert paths == ["/reset_prefix_cache", "/flush_cache"]
    assert all(not replica.engine.kv_usage for replica in fleet.replicas)


async def test_claude_codes_line_costs_nothing_on_sglang_and_zero_counts_as_told(
    app: App, fleet: SimulatedFleet, front: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await admin.post(f"/replicas/{app.fleet.find(fleet.urls[0]).name}/drain")

    async def ask(mark: str, agent: int) -> dict[str, Any]:
        system = [{"type": "text", "text": BILLING + mark}, {"type": "text", "text": RULES}]
        messages = [{"role": "user", "content": f"{agent} says hello"}]
        body = {"model": "sim", "system": system, "messages": messages, "max_tokens": 2}
        answer = await front.post("/v1/messages", json=body)
        assert answer.status_code == 200
        usage: dict[str, Any] = answer.json()["usage"]
        return usage

    assert "cache_read_input_tokens" not in await ask("a1b2c;", 1)
    assert (await ask("99999;", 2))["cache_read_input_tokens"] > 500
    # One that finds nothing: SGLang leaves the field out, and would have told of anything else.
    body = {"model": "sim", "messages": [{"role": "user", "content": "anew " * 400}]}
    await front.post("/v1/messages", json={**body, "max_tokens": 2})
    told = (await reports(admin))["sglang"]
    assert told["prompt_tokens"] > 1200
    assert 0.3 < told["hit_rate"] < 0.8
    lines = [r.json()["system"][0]["text"] for r in sent(fleet)[1] if "system" in r.json()]
    assert {line.rstrip() for line in lines} == {"x-anthropic-billing-header:"}


async def test_the_line_reaches_vllm_as_it_came(
    app: App, fleet: SimulatedFleet, front: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    await admin.post(f"/replicas/{app.fleet.find(fleet.urls[1]).name}/drain")
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "sim", "system": BILLING + "1;", "messages": messages, "max_tokens": 2}
    assert (await front.post("/v1/messages", json=body)).status_code == 200
    assert sent(fleet)[0][-1].json()["system"] == BILLING + "1;"


async def test_trtllm_serves_beside_vllm() -> None:
    async with (
        SimulatedFleet(2, engines=("vllm", "trtllm")) as fleet,
        running(fleet.urls, slow_start=0.0) as app,
    ):
        assert await app.fleet.until(lambda: app.fleet.usable == 0b11, 20)
        url = f"http://127.0.0.1:{app.port}"
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as front:
            homes: dict[int, set[str]] = {}
            for turn in range(3):
                for agent in range(6):
                    answer = await front.post("/v1/chat/completions", json=chat(agent, turn))
                    assert answer.status_code == 200
                    homes.setdefault(agent, set()).add(home(fleet, answer))
        assert all(len(where) == 1 for where in homes.values())
        trtllm = app.fleet.find(fleet.urls[1])
        assert trtllm.kind.name == "trtllm"
        assert trtllm.kv_tokens == fleet.replicas[1].params.num_blocks * 16
        assert {"trtllm"} in homes.values()


async def test_the_doctor_knows_each_engine(fleet: SimulatedFleet) -> None:
    engines, found = await diagnose(Settings(replicas=tuple(fleet.urls)), isolation=True)
    assert [engine.kind.name for engine in engines] == ["vllm", "sglang"]
    assert [engine.metrics is not None for engine in engines] == [True, True]
    # SGLang's messages know no salt; all else is as it should be.
    (leak,) = (one for one in found if one.wrong and one.where == fleet.urls[1])
    assert "messages: a prompt reused blocks of another salt" in leak.what
    assert "upgrade SGLang" in leak.fix
    assert f"{fleet.urls[1]}: it is SGLang" in report(engines, found)


async def test_exact_mode_says_why_it_leaves_sglang_out() -> None:
    """Even where the settings name sockets for its events, which it may well have."""
    async with SimulatedFleet(1, engines=("sglang",)) as simulated:
        settings = Settings(replicas=tuple(simulated.urls), exact_events="tcp://{host}:5557")
        fleet = Fleet(settings)
        exact = ExactMode(fleet)
        await fleet.start()
        exact.start()
        try:
            assert await fleet.until(lambda: fleet.usable == 1, 20)
            async with asyncio.timeout(20):
                while LEFT_OUT not in exact.why_not(0):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        finally:
            await exact.stop()
            await fleet.stop()
