"""Fixtures of tests that need a router as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

import pytest
from router_process import PROGRAM, ROOT, Process, Serve

from loadgen.replicas import SimulatedFleet


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    made: list[Process] = []

    async def make(
        *urls: str,
        program: Sequence[str] = PROGRAM,
        command: str = "serve",
        **settings: object,
    ) -> Process:
        options = {"port": 0, "admin_port": 0, "access_log": 0, "health_interval": 0.2, **settings}
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("WARMROUTE_")}
        process = await asyncio.create_subprocess_exec(
            *program,
            command,
            *(f"--replica={url}" for url in urls),
            *flags,
            cwd=ROOT,
            env={**clean, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        made.append(Process(process))
        return made[-1]

    yield make
    for process in made:
        with contextlib.suppress(ProcessLookupError):
            process.process.kill()
        await process.process.wait()


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2) as made:
        yield made
