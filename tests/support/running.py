"""A router in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from router.app import App
from router.config import Settings


@asynccontextmanager
async def running(urls: Sequence[str], **settings: Any) -> AsyncIterator[App]:
    """In front of these replicas, on free ports, without a log of requests or a wait at its end.
    settings: others, or others than these."""
    usual = {
        "replicas": tuple(urls),
        "port": 0,
        "admin_port": 0,
        "access_log": 0.0,
        "drain_timeout": 0.0,
        "settle_time": 0.0,
    }
    app = App(Settings(**{**usual, **settings}))
    await app.start()
    try:
        await app.ready()
        yield app
    finally:
        await app.stop()
