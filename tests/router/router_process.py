"""A `warmroute serve` as a process, for tests of its whole life."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "router.cli.main")


class Process:
    """One `warmroute serve`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log = ""
        self.port = self.admin_port = 0
        self._heard = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log += line.decode()
            # Who began to wait before this line is woken, also where its wait has not yet run.
            heard, self._heard = self._heard, asyncio.Event()
            heard.set()

    async def says(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its log."""
        async with asyncio.timeout(30):
            while not (found := re.search(pattern, self.log)):
                heard = asyncio.create_task(self._heard.wait())
                await asyncio.wait({heard, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                if self._reading.done() and not re.search(pattern, self.log):
                    pytest.fail(f"ended without {pattern!r}: {self.log}")
        return found

    async def listening(self) -> Process:
        found = await self.says(r"(?:listens on \S+:|workers on port )(\d+), admin on \S+:(\d+)")
        self.port, self.admin_port = int(found[1]), int(found[2])
        return self

    async def ready(self) -> Process:
        await self.listening()
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            while (await client.get(f"{self.admin}/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self

    @property
    def front(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    async def exit(self) -> int:
        async with asyncio.timeout(30):
            await self._reading
            return await self.process.wait()


Serve = Callable[..., Awaitable[Process]]
"""Starts one; keywords are settings, and `program` what stands before the arguments."""
