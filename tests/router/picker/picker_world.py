"""A picker behind a real Envoy, in front of simulated replicas, and the picker's books."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from bench.envoy import Envoy, NoEnvoyError, configuration
from loadgen.live.processes import free_ports
from loadgen.replicas import SimulatedFleet
from loadgen.replicas.fleet import QUICK
from router.app import App
from router.config import Settings
from router.picker.server import PickerServer
from router.telemetry.record import Finished

SECONDS = 20.0
"""How long anything awaited may take; far more than it does."""
LARGE = msgspec.structs.replace(QUICK, max_model_len=4_000_000, num_blocks=300_000)
"""An engine that takes prompts of several megabytes."""


async def until(condition: Callable[[], object], within: float = SECONDS) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def ports_of(fleet: SimulatedFleet) -> list[int]:
    return [int(url.rpartition(":")[2]) for url in fleet.urls]


def settings_for(*urls: str, **settings: object) -> Settings:
    fields: dict[str, object] = {
        "replicas": urls,
        "host": "127.0.0.1",
        "port": 0,
        "admin_port": 0,
        "access_log": 0.0,
        "settle_time": 0.0,
        "drain_timeout": SECONDS,
        "health_interval": 0.2,
        "metrics_interval": 0.2,
        **settings,
    }
    return Settings(**fields)  # type: ignore[arg-type]


def chat(text: str, *, tokens: int = 4, stream: bool = False, **more: object) -> dict[str, Any]:
    """A chat's body."""
    body = {
        "model": "sim",
        "max_tokens": tokens,
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
        **more,
    }
    return {**body, "stream_options": {"include_usage": True}} if stream else body


CHAT = "/v1/chat/completions"


def server_of(app: App) -> PickerServer:
    assert isinstance(app.front, PickerServer)
    return app.front


def books(app: App) -> dict[str, object]:
    """What must be nothing when nothing is in progress."""
    server = server_of(app)
    loads = [replica.load for replica in app.fleet.members()]
    return {
        "calls": len(server._open),
        "unseen": len(server._unseen),
        "bodies": app.gateway.live.body_bytes,
        "in flight": sum(load.in_flight for load in loads),
        "queued tokens": round(sum(load.queued_tokens for load in loads), 3),
        "context tokens": round(sum(load.context_tokens for load in loads), 3),
        "waiting": app.gateway.queue.queue.waiting,
    }


def kill(app: App) -> None:
    """As a killed process: the port refuses, and connections are gone."""
    server = server_of(app)
    assert server._server is not None
    server._server.close()
    for connection in list(server._connections):
        connection.transport.abort()


def served(fleet: SimulatedFleet) -> list[int]:
    """How many requests of clients each replica got."""
    return [sum(request.path == CHAT for request in replica.requests) for replica in fleet.replicas]


@dataclass
class World:
    """Envoy's port and what is behind it."""

    app: App
    envoy: Envoy
    fleet: SimulatedFleet
    client: httpx.AsyncClient
    records: list[Finished]
    """What the picker has told of requests that are over."""

    async def ask(self, text: str, **more: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=chat(text, **more))

    @property
    def served_by(self) -> dict[str, int]:
        return self.app.telemetry.served_by


MakeWorld = Callable[..., Awaitable[World]]
MakePicker = Callable[..., Awaitable[App]]


class Maker:
    """Makes worlds, and ends what it made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.apps: list[App] = []
        self._ending: list[Callable[[], Awaitable[object]]] = []

    async def picker(self, *urls: str, **settings: object) -> App:
        app = App(settings_for(*urls, **settings), picker=True)
        await app.start()
        self.apps.append(app)
        await app.ready()
        return app

    async def envoy(self, picker: int, fleet: SimulatedFleet, **options: Any) -> Envoy:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        (port,) = free_ports(1)
        made = Envoy(folder, port, configuration(port, picker, ports_of(fleet), **options))
        try:
            await made.start()
        except NoEnvoyError as error:
            pytest.skip(f"no Envoy: {error}")
        self._ending.append(made.stop)
        return made

    async def world(
        self,
        count: int = 2,
        *,
        envoy: dict[str, Any] | None = None,
        fleet: dict[str, Any] | None = None,
        **settings: object,
    ) -> World:
        """Keywords are the picker's settings; envoy and fleet have theirs apart."""
        replicas = SimulatedFleet(count, **(fleet or {}))
        await replicas.__aenter__()
        self._ending.append(lambda: replicas.__aexit__(None, None, None))
        app = await self.picker(*replicas.urls, **settings)
        records: list[Finished] = []
        observe = app.telemetry.observe

        def record(done: Finished) -> None:
            records.append(done)
            observe(done)

        app.telemetry.observe = record  # type: ignore[method-assign]
        front = await self.envoy(app.port, replicas, **(envoy or {}))
        client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{front.port}", timeout=SECONDS)
        self._ending.append(client.aclose)
        return World(app, front, replicas, client, records)

    async def check(self) -> None:
        """The books of all balance."""
        for app in self.apps:
            try:
                await until(lambda app=app: not any(books(app).values()), 10.0)  # type: ignore[misc]
            except TimeoutError:
                left = {name: value for name, value in books(app).items() if value}
                pytest.fail(f"the books do not balance: {left}")

    async def close(self) -> None:
        for end in reversed(self._ending):
            await end()
        for app in self.apps:
            await app.stop()


async def lines(response: httpx.Response) -> list[Any]:
    """A stream's events."""
    return [
        json.loads(line[6:])
        async for line in response.aiter_lines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]
