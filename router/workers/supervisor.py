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

from router import descriptors
from router.admin.gathered import GatheredServer
from router.config import Settings
from router.identity import GIVEN, PSEUDONYM
from router.listening import cannot_listen
from router.reload import Reloader, Reread
from router.signals import attend
from router.state.codec import BYE, Writer
from router.telemetry import logs
from router.tenants.host_counter import HostCounter
from router.workers.frames import (
    BATCH,
    HEARTBEAT_INTERVAL_S,
    LIMITS,
    LOAD,
    LOADED,
    MAP,
    READY,
    Frames,
    Ready,
)
from router.workers.limits import LimitsCall
from router.workers.worker import WORKER_ENV

log = logging.getLogger(__name__)

MIN_LIFETIME_S: Final = 5.0
"""A worker that lived shorter than this is not replaced at once."""
RESTART_BACKOFF_S: Final = (0.1, 5.0)
"""Seconds before it is: first, and at most."""
MAX_MISSED_HEARTBEATS: Final = 10
"""Signs of life a worker may owe before it is killed and replaced."""
MAX_MISSED_HEARTBEATS_AT_START: Final = 120
"""The same for one that has not served yet: what it loads may hold up its event loop."""
GOODBYE_NUMBER: Final = (1 << 63) - 1
"""Number of the batch that says goodbye for a worker that died."""


_encode = msgspec.json.Encoder().encode
_decode_limits = msgspec.json.Decoder(LimitsCall).decode


class _Member:
    """One place among the workers, and who holds it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: asyncio.subprocess.Process | None = None
        self.frames: Frames | None = None
        self.ready: Ready | None = None
        self.started = 0.0
        self.owed = 0
        """Signs of life that were due since the last one."""
        self.counts_as = ""
        """Its name at the counter of limits; empty where it has not called."""


class Supervisor:
    """The parent process: it starts, watches and replaces the workers."""

    def __init__(self, settings: Settings, arguments: Sequence[str], reread: Reread) -> None:
        """arguments: those of the command line, without the program."""
        self._settings = settings
        self._reloader = Reloader(settings, reread)
        self._arguments = arguments
        self._members = [_Member(number) for number in range(settings.workers)]
        self._stopping = asyncio.Event()
        self._reloaded = 0.0
        """When SIGHUP came last."""
        self._served = False
        """Some worker was ready once: what fails from now on is tried again."""
        self.status = 0
        self._admin: GatheredServer | None = None
        self._catching_up: set[asyncio.Task[None]] = set()
        self._reserved: socket.socket | None = None
        self._limits = HostCounter(settings.workers)
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
        attend(loop, self._reload)
        warning = descriptors.limit_warning(settings.max_connections, len(settings.engines))
        if warning:
            log.warning("%s (for each worker)", warning)
        self._reserve()
        self._admin = admin = GatheredServer(settings, self.admin_ports)
        await admin.start()
        log.info(
            "warmroute: %d workers on port %d, admin on http://%s:%d",
            settings.workers,
            self.port,
            settings.admin_host,
            admin.port,
        )
        watching = loop.create_task(self._watch(), name="frozen workers")
        await asyncio.gather(*(self._keep(member) for member in self._members))
        watching.cancel()
        await admin.stop()
        if self._reserved is not None:
            self._reserved.close()
        return self.status

    def _reserve(self) -> None:
        """Hold the port without listening: its number stays the same while workers come and go.

        Raises OSError when another program has it, another supervisor among them: bound to be
        shared from the beginning, both would get it, and each about half of the connections.
        """
        settings = self._settings
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._reserved = reserved = socket.socket(family, kind)
        if settings.host == "::":
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # As a server binds that means to be alone, connections that are closing left aside.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        # It is ours: from here on the workers may share it.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.port = reserved.getsockname()[1]

    def _stop(self, number: int) -> None:
        """Pass the signal on: the first lets workers settle, later ones hurry them."""
        self._stopping.set()
        self._pass_signal(number, self._members)

    def _pass_signal(self, number: int, members: Sequence[_Member]) -> None:
        for member in members:
            if member.process is not None and member.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    member.process.send_signal(number)

    async def _reload(self) -> None:
        self._reloaded = time.monotonic()
        # One that starts could be ended by the signal; it is told once it is ready.
        self._pass_signal(signal.SIGHUP, [m for m in self._members if m.ready is not None])
        await self._reloader.supervisor()

    async def _watch(self) -> None:
        """Kill workers that show no sign of life: their connections wait for nobody.

        What is counted are signs, not seconds: when the whole machine has stood still, nobody owes
        more than one.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)
            for member in self._members:
                process = member.process
                if process is None or process.returncode is not None:
                    continue
                member.owed += 1
                if member.owed > (
                    MAX_MISSED_HEARTBEATS_AT_START
                    if member.ready is None
                    else MAX_MISSED_HEARTBEATS
                ):
                    log.error("worker %d does not respond; killing it", member.number)
                    member.owed = 0
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()

    async def _keep(self, member: _Member) -> None:
        """Have a worker in this place until it is time to stop."""
        pause = RESTART_BACKOFF_S[0]
        while not self._stopping.is_set():
            status = await self._life(member)
            self._died(member)
            if self._stopping.is_set():
                self.status = self.status or max(status, 0)
                return
            if not self._served:
                log.error(
                    "worker %d ended with status %d; stopping all workers", member.number, status
                )
                self.status = status if status > 0 else 1
                self._stop(signal.SIGTERM)
                return
            lived = time.monotonic() - member.started
            pause = (
                RESTART_BACKOFF_S[0]
                if lived > MIN_LIFETIME_S
                else min(2 * pause, RESTART_BACKOFF_S[1])
            )
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

    async def _life(self, member: _Member) -> int:
        """Start a worker and wait for its end. Returns its exit status."""
        try:
            await self._start(member)
        except OSError as error:
            log.error("worker %d cannot be started: %s", member.number, error)
            return 1
        assert member.process is not None
        return await member.process.wait()

    async def _start(self, member: _Member) -> None:
        member.started = time.monotonic()
        member.owed = 0
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def heard(kind: int, worker: int, data: bytes) -> None:
            self._heard(member, kind, worker, data)

        member.frames = Frames(heard, lambda: None)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: frames_of(member), sock=ours
        )
        with theirs:
            member.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "router.cli.main",
                *self._arguments,
                env=os.environ | {WORKER_ENV: f"{theirs.fileno()},{self.port}", GIVEN: PSEUDONYM},
                pass_fds=(theirs.fileno(),),
                # A Ctrl-C in the terminal is passed on once, not told to all by the terminal too.
                start_new_session=True,
            )

    def _died(self, member: _Member) -> None:
        ready, member.ready = member.ready, None
        frames, member.frames = member.frames, None
        if frames is not None:
            frames.close()
        self._limits.gone(member.counts_as)
        if ready is not None and ready.router:
            writer = Writer()
            writer.plain(BYE)
            self._pass_on(member, writer.batch(ready.router, GOODBYE_NUMBER))

    def _pass_on(self, sender: _Member, data: bytes) -> None:
        for member in self._members:
            if member is not sender and member.frames is not None:
                member.frames.tell(BATCH, data)

    def _heard(self, member: _Member, kind: int, worker: int, data: bytes) -> None:
        member.owed = 0
        if kind == BATCH:
            self._pass_on(member, data)
        elif kind == LIMITS:
            asked = _decode_limits(data)
            member.counts_as = asked.call.router
            if member.frames is not None:
                reply = self._limits.call(asked.names, asked.call)
                member.frames.tell(LIMITS, _encode(reply), worker)
        elif kind == READY:
            member.ready = msgspec.json.decode(data, type=Ready)
            self._served = True
            if member.started < self._reloaded:
                self._pass_signal(signal.SIGHUP, [member])
            if self._admin is not None:
                catching_up = self._admin.catch_up(member.ready.admin_port)
                task = asyncio.get_running_loop().create_task(catching_up)
                self._catching_up.add(task)
                task.add_done_callback(self._catching_up.discard)
        elif kind == LOAD:
            elders = [m for m in self._members if m.ready is not None and m is not member]
            elder = min(elders, key=lambda m: m.started, default=None)
            told = (
                elder is not None
                and elder.frames is not None
                and elder.frames.tell(LOAD, b"", member.number)
            )
            if not told and member.frames is not None:
                member.frames.tell(LOADED)
        elif kind in (MAP, LOADED) and worker < len(self._members):
            frames = self._members[worker].frames
            if frames is not None:
                frames.tell(kind, data)


def frames_of(member: _Member) -> Frames:
    """A member's line, which it has."""
    assert member.frames is not None
    return member.frames


async def _supervise(settings: Settings, arguments: Sequence[str], reread: Reread) -> int:
    try:
        return await Supervisor(settings, arguments, reread).run()
    except OSError as error:
        log.error("%s", cannot_listen(error))
        return 1


def run(settings: Settings, arguments: Sequence[str], reread: Reread) -> int:
    """Run the workers until SIGTERM or SIGINT. Returns the process's exit status."""
    descriptors.raise_limit()
    logs.setup(settings.log_level, settings.log_format)
    try:
        return uvloop.run(_supervise(settings, arguments, reread))
    finally:
        logs.close()
