"""The rules and autoscalers of docs/operate/queue.md, by a real Prometheus and a router with a
queue."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from msgspec.structs import replace
from running import running

from dashboards.stage import prometheus_program, scraping
from loadgen.replicas import SimulatedFleet
from loadgen.replicas.fleet import QUICK
from router.app import App

PAGE = Path(__file__).parents[2] / "docs/operate/queue.md"
SLOW = replace(QUICK, name="slow", prefill_rate=1000.0)
WORK, SESSIONS = "warmroute:replicas_for_work", "warmroute:replicas_for_sessions"


def examples() -> list[dict[str, Any]]:
    found = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [yaml.safe_load(each) for each in found]


def test_the_autoscalers_ask_for_what_is_recorded() -> None:
    rules, keda, adapter, hpa = examples()
    recorded = [rule["record"] for group in rules["groups"] for rule in group["rules"]]
    assert recorded == [WORK, SESSIONS]
    assert [each["metadata"]["query"] for each in keda["spec"]["triggers"]] == recorded
    (served,) = adapter["rules"]["external"]
    (_, pattern), (named, to) = (
        re.fullmatch(r"{(.*)=~\"(.*)\"}", served["seriesQuery"]).groups(),  # type: ignore[union-attr]
        (served["name"]["matches"], served["name"]["as"].replace("$1", r"\1")),
    )
    assert all(re.fullmatch(pattern, name) for name in recorded)
    asked = [each["external"]["metric"]["name"] for each in hpa["spec"]["metrics"]]
    assert asked == [re.sub(named, to, name) for name in recorded]


async def ask(app: App, http: httpx.AsyncClient, name: str, tokens: int, *low: str) -> None:
    """A stream whose prompt has so many tokens."""
    text = f"{name} " * (4 * tokens // (len(name) + 1))
    headers = {"x-session-id": name} | ({"x-dynamo-request-priority": "-1"} if low else {})
    body = {
        "model": "sim",
        "stream": True,
        "max_tokens": 2,
        "messages": [{"role": "user", "content": text}],
    }
    url = f"http://127.0.0.1:{app.port}/v1/chat/completions"
    async with http.stream("POST", url, json=body, headers=headers) as answer:
        async for _ in answer.aiter_bytes():
            pass


@pytest.mark.skipif(
    prometheus_program() is None, reason="needs prometheus (Debian: apt-get install prometheus)"
)
@pytest.mark.timeout(300)
async def test_replicas_are_asked_for_while_work_waits_and_no_longer() -> None:
    program = prometheus_program()
    assert program is not None
    rules = yaml.safe_dump(examples()[0])
    rules = rules.replace("name: warmroute-scale", "name: warmroute-scale\n  interval: 1s")
    async with (
        SimulatedFleet(2, params=SLOW) as fleet,
        running(fleet.urls, prefill_rate=1000.0, queue_timeout=0.0) as app,
        scraping(program, app.admin.port, 1, rules) as prometheus,
        httpx.AsyncClient(timeout=120, trust_env=False) as http,
    ):

        async def value(query: str) -> float:
            answer = await prometheus.get("/api/v1/query", params={"query": query})
            found = answer.json()["data"]["result"]
            return float(found[0]["value"][1]) if found else -1.0

        async def until(query: str, holds: Callable[[float], bool]) -> float:
            async with asyncio.timeout(60):
                while not holds(found := await value(query)):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            return found

        await until(WORK, lambda found: found == 0.0)
        await until(SESSIONS, lambda found: found == 0.0)
        queue = app.gateway.queue
        await asyncio.gather(*(ask(app, http, f"short{n}", 20) for n in range(2)))
        waiting = [asyncio.create_task(ask(app, http, f"batch{n}", 4000, "low")) for n in range(12)]
        # Two run, and ten of 4,000 tokens wait at 1,000 a second: 40 seconds of work.
        found = await until(WORK, lambda found: found > 2.0)
        assert found <= 2 + ceil(4.8)
        assert await until(SESSIONS, lambda found: found > 0.0) > 0.0
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(WORK, lambda found: found == 0.0)
        assert queue.work_seconds == 0.0
