"""Fixtures of the data path's tests.

After every test the router's books must balance, and nothing may have gone wrong unseen.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from http_world import (
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    ScriptedReplica,
    books,
    settings_for,
    until,
)
from tenant_world import MakeGateway, content

from router.app import App
from router.tenants.isolation_guard import IsolationGuard


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def replicas() -> AsyncIterator[MakeReplica]:
    made: list[ScriptedReplica] = []

    async def make(**fields: object) -> ScriptedReplica:
        replica = await ScriptedReplica(**fields).start()  # type: ignore[arg-type]
        made.append(replica)
        return replica

    yield make
    for replica in made:
        await replica.stop()


async def check_books(app: App) -> None:
    try:
        await until(lambda: not any(books(app).values()), 5.0)
    except TimeoutError:
        left = {name: value for name, value in books(app).items() if value}
        pytest.fail(f"the books do not balance: {left}")


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Errors that a test expects, as regular expressions; all others fail it."""
    expected: list[str] = []
    caplog.set_level(logging.WARNING)
    yield expected
    for record in caplog.get_records("call"):
        line = f"{record.name}: {record.getMessage()}"
        bad = record.levelno >= logging.ERROR or record.name == "asyncio"
        if bad and not any(re.search(pattern, line) for pattern in expected):
            pytest.fail(f"logged: {line}\n{record.exc_text or ''}")


class _NoAdmin:
    """Starting and stopping the admin port takes longer than most tests here."""

    port = 0

    def __init__(self, *_: object, **__: object) -> None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


@pytest.fixture
async def router(
    complaints: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MakeRouter]:
    monkeypatch.setattr("router.app.AdminServer", _NoAdmin)
    made: list[App] = []
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))

    async def make(*members: ScriptedReplica | str, **settings: object) -> App:
        """A router in front of these; the keywords are its settings."""
        urls = [member if isinstance(member, str) else member.url for member in members]
        app = App(settings_for(*urls, **settings))
        await app.start()
        made.append(app)
        await app.ready()
        return app

    yield make
    try:
        for app in made:
            await check_books(app)
        assert not unhandled
    finally:
        for app in made:
            await app.stop()


@pytest.fixture
def quick_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts of a few hundredths of a second can be tested."""
    monkeypatch.setattr("router.http.timeouts.SWEEP_INTERVAL_S", 0.02)


@pytest.fixture
async def connect(router: MakeRouter) -> AsyncIterator[Connect]:
    # It asks for the router so as to close before the router's books are looked at.
    made: list[Raw] = []

    async def make(app: App) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", app.port, limit=1 << 24))
        made.append(raw)
        return raw

    yield make
    for raw in made:
        raw.close()


@pytest.fixture
def gateway(router: MakeRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeGateway:
    async def make(
        *members: ScriptedReplica | str,
        guarded: bool = False,
        acme: dict[str, Any] | None = None,
        file: dict[str, Any] | None = None,
        **settings: object,
    ) -> App:
        if not guarded:
            # Its probes would be among what replicas receive.
            monkeypatch.setattr(IsolationGuard, "start", lambda self: None)
        path = tmp_path / "tenants.yaml"
        path.write_text(content(acme or {}, **(file or {})))
        return await router(*members, tenants=str(path), **settings)

    return make
