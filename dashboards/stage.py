"""A gateway under load with a real Prometheus that scrapes it: what the dashboards are tried on.

Everything runs on loopback and ends with the block. Needs the `prometheus` program.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import shutil
import signal
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from msgspec.structs import replace

from loadgen.replicas import SimulatedFleet
from loadgen.replicas.fleet import QUICK
from router.app import App
from router.config import Settings

RULES = Path(__file__).with_name("rules.yaml")
ANSWERS = 10
"""A scrape has so many times as long as one took, so that no slow machine misses them."""
QUICKEST = 0.25
"""Seconds between two scrapes, at least; more are multiples of it."""
RATE_SCRAPES = 8
"""Scrapes that a rate is taken over."""
ENGINE = replace(QUICK, name="stage", prefill_rate=12_000.0)
"""Slow enough that a handful of clients keep the fleet busy."""


def prometheus_program() -> str | None:
    """Where Prometheus is; None where it is not installed."""
    return shutil.which("prometheus")


CLIENTS = 6


@dataclass
class Stage:
    """What runs, and how to ask Prometheus."""

    app: App
    fleet: SimulatedFleet
    http: httpx.AsyncClient
    started: float
    scrape: float
    """Seconds between two scrapes: more on a slow machine."""

    def fill(self, expr: str) -> str:
        """A dashboard's query as Grafana would send it."""
        rate = _duration(RATE_SCRAPES * self.scrape)
        filled = expr.replace("$__rate_interval", rate).replace("$job", "warmroute")
        return re.sub(r"\$(namespace|model|replica)\b", ".*", filled)

    async def ask(self, path: str, **options: Any) -> Any:
        """The data of an answer of Prometheus' API. Raises ValueError with what it says."""
        answer = (await self.http.get(f"/api/v1/{path}", params=options)).json()
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]

    async def more(self, scrapes: int) -> None:
        """Go on with the load: a busy machine may have got little of it done."""
        await _load(self.app.port, self.fleet, scrapes * self.scrape, CLIENTS)

    async def lines(self, expr: str) -> list[dict[str, Any]]:
        """The series of a query since the load began: labels and [time, value] pairs."""
        start = self.started + 3 * self.scrape
        found = await self.ask(
            "query_range", query=self.fill(expr), start=start, end=time.time(), step=self.scrape
        )
        series: list[dict[str, Any]] = found["result"]
        return series


@asynccontextmanager
async def stage(
    scrapes: int, replicas: int = 4, quickest: float = QUICKEST
) -> AsyncIterator[Stage]:
    """Load for so many scrapes, then the stage, still running. `quickest` is how many seconds lie
    between two scrapes at least."""
    program = prometheus_program()
    if program is None:
        raise RuntimeError("prometheus is not installed")
    async with SimulatedFleet(replicas, params=ENGINE, default_output_tokens=40) as fleet:
        app = App(
            Settings(
                replicas=tuple(fleet.urls),
                port=0,
                admin_port=0,
                access_log=0.0,
                kv_cache_guess=100_000,
                settle_time=0.0,
                drain_timeout=2.0,
                health_interval=0.5,
                shadow_policies=("round_robin",),
            )
        )
        await app.start()
        try:
            await app.ready()
            scrape = await _pace(app.admin.port, quickest)
            async with scraping(program, app.admin.port, scrape, RULES.read_text()) as http:
                on = Stage(app, fleet, http, time.time(), scrape)
                await on.more(scrapes)
                yield on
        finally:
            await app.stop()


async def _pace(admin_port: int, quickest: float) -> float:
    """Seconds between scrapes that this machine can keep up with."""
    took = []
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        for _ in range(5):
            before = time.monotonic()
            await http.get(f"http://127.0.0.1:{admin_port}/metrics")
            took.append(time.monotonic() - before)
    # The first one of a process takes longer than those that follow.
    return max(quickest, QUICKEST * math.ceil(ANSWERS * statistics.median(took) / QUICKEST))


def _duration(seconds: float) -> str:
    """As Prometheus writes it: whole numbers of a unit."""
    return f"{round(seconds * 1000)}ms"


@asynccontextmanager
async def scraping(
    program: str, admin_port: int, scrape: float, rules: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A Prometheus that scrapes a router every so many seconds; a client of its API. rules: as in
    a rule file."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = _settings(Path(folder), admin_port, scrape, rules)
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        )
        try:
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=120, trust_env=False) as http:
                await _until_scraping(http)
                yield http
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()


def _settings(folder: Path, admin_port: int, scrape: float, rules: str) -> Path:
    """Write Prometheus' settings. Returns the file."""
    rule_file = folder / "rules.yaml"
    # In the cluster every half minute does.
    rule_file.write_text(rules.replace("interval: 30s", f"interval: {_duration(scrape)}"))
    target = {"targets": [f"127.0.0.1:{admin_port}"], "labels": {"namespace": "llm"}}
    settings = {
        "global": {
            "scrape_interval": _duration(scrape),
            "scrape_timeout": _duration(scrape),
            "evaluation_interval": _duration(scrape),
        },
        "rule_files": [str(rule_file)],
        "scrape_configs": [{"job_name": "warmroute", "static_configs": [target]}],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings))
    return file


async def _until_scraping(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(300):
        while True:
            try:
                answer = await http.get("/api/v1/query", params={"query": "warmroute_build_info"})
                if answer.json()["data"]["result"]:
                    return
            except (httpx.TransportError, ValueError, KeyError):
                pass  # it is still starting
            await asyncio.sleep(0.2)


async def _load(port: int, fleet: SimulatedFleet, seconds: float, clients: int) -> None:
    """Conversations that grow, in waves, with some that fail."""
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_talk(port, number, until))
        group.create_task(_trouble(fleet, until))


async def _talk(port: int, number: int, until: float) -> None:
    draw = random.Random(number)
    system = f"You are assistant {number // 2} of several, and a careful one. " * 40
    base = f"http://127.0.0.1:{port}"
    while time.monotonic() < until:
        # A connection for each conversation.
        async with httpx.AsyncClient(base_url=base, timeout=120, trust_env=False) as http:
            await _converse(http, draw, number, until, system)


async def _converse(
    http: httpx.AsyncClient, draw: random.Random, number: int, until: float, system: str
) -> None:
    messages: list[dict[str, str]] = []
    for _ in range(draw.randint(1, 6)):
        if time.monotonic() >= until:
            return
        topic = f"{draw.random()} " * draw.randint(20, 120)
        # Some turns bring a tool's result, and one client tells the time before everything else.
        tool = {"role": "tool", "tool_call_id": "tool", "content": topic}
        messages = [*messages, tool if len(messages) % 4 else {"role": "user", "content": topic}]
        clock = f"It is {time.time():.3f}. " if number == 0 else ""
        body = {
            # Now and then a model that nobody has.
            "model": "sim" if draw.random() > 0.03 else "nobody-has-it",
            "stream": draw.random() < 0.8,
            "max_tokens": draw.randint(5, 60),
            "messages": [{"role": "system", "content": clock + system}, *messages],
        }
        try:
            answer = await http.post("/v1/chat/completions", json=body)
        except httpx.TransportError:
            continue  # a failure on purpose reached this client
        if answer.status_code == 200:
            messages.append({"role": "assistant", "content": answer.text[:200]})
        # Waves, so that lines move.
        wave = 1 + (int(time.monotonic() / 4) + number) % 3
        await asyncio.sleep(draw.uniform(0.02, 0.08) * wave)


async def _trouble(fleet: SimulatedFleet, until: float) -> None:
    """Some requests fail, and two replicas are restarted."""
    span = until - time.monotonic()
    await asyncio.sleep(span * 0.25)
    for replica in fleet.replicas:
        # So often that some fail at every replica they are tried at, and the client is told.
        await replica.fail(0.5, 500, -1)
    await asyncio.sleep(span * 0.25)
    for replica in fleet.replicas:
        await replica.clear()
    for victim in fleet.replicas[:2]:
        await victim.restart(span * 0.05)
        await asyncio.sleep(span * 0.1)
