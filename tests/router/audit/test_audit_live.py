"""The audit of a live router: agents that ask simulated engines, and what the admin port tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import uvloop
from running import running

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.audit.report import Audit, SessionList, SessionStory
from router.audit.show import as_html, as_text
from router.cli.main import main
from router.config import Settings

RULES = "You are a careful agent. Read the files, run the tests, and change as little as you can. "
TASK = "Make the test pass that fails in the folder of the parser, and tell what was wrong. " * 4


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2) as made:
        yield made


@pytest.fixture
async def app(fleet: SimulatedFleet) -> AsyncIterator[App]:
    async with running(fleet.urls, replica_hour_price=3.6) as app:
        yield app


async def agent(app: App, name: str, steps: int, *, stamped: bool, result: str = "ok ") -> None:
    """A loop without any name of its session."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": TASK + name}]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.port}") as client:
        for step in range(steps):
            system = RULES * 20
            if stamped:
                system = f"Now: 2026-11-29T10:{step:02}:07Z. " + system
            body = {
                "model": "sim",
                "max_tokens": 4,
                "messages": [{"role": "system", "content": system}, *messages],
            }
            answer = await client.post(
                "/v1/chat/completions", json=body, headers={"user-agent": f"{name}/1.0"}
            )
            assert answer.status_code == 200
            call = {
                "id": f"c{step}",
                "type": "function",
                "function": {"name": "bash", "arguments": "{}"},
            }
            messages += [
                {"role": "assistant", "content": f"step {step}", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"c{step}", "content": result * 100},
            ]


async def ask(app: App, path: str, kind: Any) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.admin.port}") as client:
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        return msgspec.json.decode(answer.content, type=kind)


async def test_a_time_stamp_in_the_system_prompt_is_found(app: App) -> None:
    await agent(app, "stamper", 6, stamped=True)
    await agent(app, "steady", 6, stamped=False)
    found: Audit = await ask(app, "/audit?since=1h", Audit)
    assert found.requests == 12
    first = found.findings[0]
    assert (first.kind, first.part, first.looks_like) == ("volatile_prefix", "system", "time stamp")
    assert (first.agent, first.model, first.requests) == ("stamper", "sim", 5)
    assert "last message" in first.mend
    assert first.money_a_day is not None
    assert first.money_a_day > 0
    assert all(each.agent != "steady" for each in found.findings)
    # What it cost is what the engines did not deliver: each step's prompt but for its last answer.
    sessions: SessionList = await ask(app, "/sessions", SessionList)
    by_agent = {each.agent: each for each in sessions.sessions}
    stamper, steady = by_agent["stamper"], by_agent["steady"]
    assert (stamper.steps, steady.steps) == (6, 6)
    lost = steady.cached_tokens - stamper.cached_tokens
    assert abs(first.tokens_lost - lost) <= 0.05 * lost
    story: SessionStory = await ask(app, f"/sessions/{stamper.id}", SessionStory)
    assert [each.reason for each in story.requests] == ["never_computed"] + ["system_changed"] * 5
    assert all(each.divergence and each.divergence.part == "system" for each in story.requests[1:])
    assert story.requests[-1].tool == "bash"
    story = await ask(app, f"/sessions/{steady.id}", SessionStory)
    assert [each.reason for each in story.requests] == ["never_computed"] + ["hit"] * 5
    assert all(each.divergence is None for each in story.requests)


async def test_what_agents_do(app: App) -> None:
    await agent(app, "one", 5, stamped=False)
    found: Audit = await ask(app, "/audit", Audit)
    rates = found.agents.hit_rate_by_step
    assert len(rates) == 5
    assert rates[1] is not None
    assert rates[1] > 0.8
    tools = found.agents.tool_results
    # The last result is in no prompt yet, and the second to fourth are the first again.
    assert (tools.results, tools.repeats) == (4, 3)
    assert tools.share_of_growth is not None
    assert 0.4 < tools.share_of_growth < 1
    pauses = found.agents.pauses
    assert (pauses.resumed, pauses.gone) == (4, 0)
    assert set(pauses.holds_s) == {each.name for each in app.fleet.members()}


async def test_sessions_are_filtered_and_limited(app: App) -> None:
    for name in ("a", "b", "c"):
        await agent(app, name, 2, stamped=False)
    found: SessionList = await ask(app, "/sessions?limit=2", SessionList)
    assert [each.agent for each in found.sessions] == ["c", "b"]
    assert not (await ask(app, "/sessions?model=other", SessionList)).sessions
    assert not (await ask(app, "/sessions?tenant=other", SessionList)).sessions
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.admin.port}") as client:
        assert (await client.get("/sessions/nobody")).status_code == 404
        assert (await client.get("/sessions?limit=x")).status_code == 400
        refused = await client.get("/audit?since=x")
        assert refused.status_code == 400
        assert "write it like 15m or 1h" in refused.text


async def test_the_command(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    await agent(app, "<b>stamper", 4, stamped=True)
    given = ["audit", "--admin-port", str(app.admin.port)]
    assert await asyncio.to_thread(main, [*given, "--json"]) == 0
    audit = msgspec.json.decode(capsys.readouterr().out, type=Audit)
    assert audit.findings[0].looks_like == "time stamp"
    assert await asyncio.to_thread(main, given) == 0
    text = capsys.readouterr().out
    assert text == as_text(audit)
    assert "volatile prefix: time stamp" in text
    assert "Hit rate by step" in text
    for since_s, requests, heading in (
        (3.4, 1, "1 request in the last 3 seconds"),
        (1.2, 2, "2 requests in the last 1 second"),
        (3600.0, 1234, "1,234 requests in the last 60 minutes"),
    ):
        told = msgspec.structs.replace(audit, since_s=since_s, requests=requests)
        assert as_text(told).splitlines()[0] == heading
        assert f"<p>{heading}</p>" in as_html(told)
    assert await asyncio.to_thread(main, [*given, "--html"]) == 0
    page = capsys.readouterr().out
    assert page == as_html(audit)
    assert "<script" not in page
    assert await asyncio.to_thread(main, [*given, "--since", "soon"]) == 1
    assert await asyncio.to_thread(main, ["audit", "--admin-port", "1"]) == 1
    assert "is a router running there" in capsys.readouterr().err


async def test_nothing_is_told_where_it_is_off(fleet: SimulatedFleet) -> None:
    app = App(
        Settings(
            replicas=tuple(fleet.urls),
            port=0,
            admin_port=0,
            access_log=0.0,
            drain_timeout=0.0,
            settle_time=0.0,
            diagnosis=False,
        )
    )
    await app.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.admin.port}") as client:
            for path in ("/sessions", "/sessions/x", "/audit"):
                answer = await client.get(path)
                assert answer.status_code == 404
                assert "diagnosis" in json.loads(answer.text)["error"]
    finally:
        await app.stop()
