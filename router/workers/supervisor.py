"""Starts the workers, replaces those that die, and passes their facts on.

Workers are started as new processes, not forked: nothing of one process's event loop, TLS or
hash state may be in another. They listen on one port with SO_REUSEPORT, so that the kernel spreads
connections over them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import uvloop

from router.admin.gathered import GatheredServer
from router.config import Settings
from router.state.codec import BYE, Writer
from router.telemetry import logs
from router.workers.frames import BATCH, LOAD, LOADED, MAP, READY, Frames, Ready
from router.workers.worker import ENV

log = logging.getLogger(__name__)

SOON: Final = 5.0
"""A worker that lived shorter than this is not replaced at once."""
PAUSES: Final = (0.1, 5.0)
"""Seconds before it is: first, and at most."""
LAST: Final = (1 << 63) - 1
"""Number of the batch that says goodbye for a worker that died."""


class _Member:
    """One place among the workers, and who holds it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.frames: Frames | None = None
        self.ready: Ready | None = None
        self.started = 0.0


class Supervisor:
    """The parent process."""

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        """arguments: those of the command line, without the program."""
        self._settings = settings
        self._arguments = arguments
        self._members = [_Member(number) for number in range(settings.workers)]
        self._stopping = asyncio.Event()
        self._served = False
        """Some worker was ready once: what fails from now on is tried again."""
        self.status = 0
        self._reserved: socket.socket | None = None
        self.port = 0

    def admin_ports(self) -> list[tuple[int, int]]:
        """(worker, admin port) of those that are ready."""
        return [(m.number, m.ready.admin_port) for m in self._members if m.ready is not None]

    async def run(self) -> int:
        """Until SIGTERM or SIGINT. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        settings = self._settings
        self._reserve()
        admin = GatheredServer(settings, self.admin_ports)
        await admin.start()
        log.info(
            "warmroute: %d workers on port %d, admin on http://%s:%d",
            settings.workers,
            self.port,
            settings.admin_host,
            admin.port,
        )
        await asyncio.gather(*(self._keep(member) for member in self._members))
        await admin.stop()
        if self._reserved is not None:
            self._reserved.close()
        return self.status

    def _reserve(self) -> None:
        """Hold the port without listening: its number stays the same while workers come and go.

        Raises OSError when another program has it.
        """
        settings = self._settings
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._reserved = socket.socket(family, kind)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if settings.host == "::":
            self._reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self._reserved.bind(address)
        self.port = self._reserved.getsockname()[1]

    def _stop(self, number: int) -> None:
        """Pass the signal on: the first lets workers settle, later ones hurry them."""
        self._stopping.set()
        for member in self._members:
            if member.process is not None and member.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    member.process.send_signal(number)

    async def _keep(self, member: _Member) -> None:
        """Have a worker in this place until it is time to stop."""
        pause = PAUSES[0]
        while not self._stopping.is_set():
            await self._start(member)
            assert member.process is not None
            status = await member.process.wait()
            self._died(member)
            if self._stopping.is_set():
                self.status = self.status or max(status, 0)
                return
            if not self._served:
                log.error("worker %d ended with status %d, stopping", member.number, status)
                self.status = status if status > 0 else 1
                self._stop(signal.SIGTERM)
                return
            lived = time.monotonic() - member.started
            pause = PAUSES[0] if lived > SOON else min(2 * pause, PAUSES[1])
            log.warning(
                "worker %d ended with status %d after %.0f s, replacing it in %.1f s",
                member.number,
                status,
                lived,
                pause,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _start(self, member: _Member) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def heard(kind: int, worker: int, data: bytes) -> None:
            self._heard(member, kind, worker, data)

        member.frames = Frames(heard, lambda: None)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: frames_of(member), sock=ours
        )
        member.started = time.monotonic()
        member.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "router.cli.main",
            *self._arguments,
            env=os.environ | {ENV: f"{theirs.fileno()},{self.port}"},
            pass_fds=(theirs.fileno(),),
            # A Ctrl-C in the terminal is passed on once, not told to all by the terminal too.
            start_new_session=True,
        )
        theirs.close()

    def _died(self, member: _Member) -> None:
        ready, member.ready = member.ready, None
        frames, member.frames = member.frames, None
        if frames is not None:
            frames.close()
        if ready is not None and ready.router:
            writer = Writer()
            writer.plain(BYE)
            self._pass_on(member, writer.batch(ready.router, LAST))

    def _pass_on(self, sender: _Member, data: bytes) -> None:
        for member in self._members:
            if member is not sender and member.frames is not None:
                member.frames.tell(BATCH, data)

    def _heard(self, member: _Member, kind: int, worker: int, data: bytes) -> None:
        if kind == BATCH:
            self._pass_on(member, data)
        elif kind == READY:
            member.ready = msgspec.json.decode(data, type=Ready)
            self._served = True
        elif kind == LOAD:
            elders = [m for m in self._members if m.ready is not None and m is not member]
            elder = min(elders, key=lambda m: m.started, default=None)
            asked = (
                elder is not None
                and elder.frames is not None
                and elder.frames.tell(LOAD, b"", member.number)
            )
            if not asked and member.frames is not None:
                member.frames.tell(LOADED)
        elif kind in (MAP, LOADED) and worker < len(self._members):
            frames = self._members[worker].frames
            if frames is not None:
                frames.tell(kind, data)


def frames_of(member: _Member) -> Frames:
    """A member's line, which it has."""
    assert member.frames is not None
    return member.frames


async def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    try:
        return await Supervisor(settings, arguments).run()
    except OSError as error:
        log.error("cannot listen: %s", error)
        return 1


def run(settings: Settings, arguments: Sequence[str]) -> int:
    """Run the workers until SIGTERM or SIGINT. Returns the process's exit status."""
    logs.setup(settings.log_level)
    return uvloop.run(_supervise(settings, arguments))
