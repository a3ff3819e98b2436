"""Starts gateways of this project in front of real engines."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic

import httpx

PATIENCE_SECONDS = 240.0
"""How long to wait for an event that must come, on however busy a machine."""
_LISTENS = re.compile(r"listens on (\S+), admin on (\S+),")


class Gateway:
    """A gateway in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, admin: str) -> None:
        self.process = process
        self.url = url
        self.admin = admin
        self.lines: list[str] = []


@asynccontextmanager
async def gateway(urls: Sequence[str], *flags: str) -> AsyncIterator[Gateway]:
    """Start a gateway before some engines; wait until all are usable, and exact where asked for."""
    arguments = [flag for url in urls for flag in ("--replica", url)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router.cli.main", "serve", *arguments, *flags,
        *("--port", "0", "--admin-port", "0", "--explain-headers", "--access-log", "0"),
        *("--settle-time", "0", "--drain-timeout", "1", "--slow-start", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )  # fmt: skip
    assert process.stdout is not None
    reading: asyncio.Task[None] | None = None
    lines: list[str] = []
    try:
        found = None
        while found is None:
            line = (await process.stdout.readline()).decode()
            if not line:
                raise RuntimeError("the gateway ended: " + "".join(lines[-5:]))
            lines.append(line)
            found = _LISTENS.search(line)
        started = Gateway(process, found[1], found[2])
        started.lines = lines
        reading = asyncio.create_task(_read(process.stdout, lines))
        count = len(urls) + flags.count("--prefill")
        await usable(started, count, exact="--exact" in flags)
        yield started
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 60)
            except TimeoutError:
                process.kill()
                await process.wait()
        if reading is not None:
            reading.cancel()


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode())  # noqa: PERF401  (seen while it grows)


async def usable(started: Gateway, count: int, *, exact: bool) -> None:
    """Wait until so many replicas are usable, and exact when that is asked for. Raises RuntimeError
    with what the gateway says of them when time runs out."""
    give_up = monotonic() + PATIENCE_SECONDS
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        while True:
            told = (await client.get(started.admin + "/replicas")).json()
            if sum(one["usable"] and (one["exact"] or not exact) for one in told) >= count:
                return
            if monotonic() > give_up:
                raise RuntimeError(f"not {count} usable replicas: {told}")
            await asyncio.sleep(0.1)
