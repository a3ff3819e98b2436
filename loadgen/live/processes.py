"""Child processes that cannot outlive us: each in a group of its own, ended by pid, whatever
happens."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import uvloop

TERM_SECONDS = 5.0
LOWEST_PORT, HIGHEST_PORT = 10_000, 32_000
READY_S = 90.0
"""On a busy machine a gateway takes many seconds to start."""
ATTEMPTS = 100
_PR_SET_PDEATHSIG = 1
_T = TypeVar("_T")


class ChildError(RuntimeError):
    """A child process did not come up, or died. The message ends with what it printed last."""


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> Callable[[], None] | None:
    """What makes the kernel end a child when we are killed ourselves; only Linux has it."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, how)

    return ask


class Child:
    """A process with its process group, so that its children end with it."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (stop closes it)
        # Its own session: Ctrl-C reaches only us, and we decide the order in which things end.
        self.process = subprocess.Popen(  # noqa: S603 (our own commands)
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, most: int = 2000) -> str:
        """The last part of what the process printed."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - most))
        return self._log.read().decode(errors="replace").strip()

    def check(self) -> None:
        """Raises ChildError when it is no longer running."""
        status = self.process.poll()
        if status is not None:
            raise ChildError(f"{self.name} ended with status {status}:\n{self.said()}")

    def stop(self, patience: float = TERM_SECONDS) -> None:
        """Ask its group to end, then end it. Safe to call twice."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        # Also when the process is gone: what it started may not be.
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Children:
    """Starts children and ends them all, in reverse, at the end of the block or of the program."""

    def __init__(self) -> None:
        self._running: list[Child] = []

    def __enter__(self) -> Children:
        atexit.register(self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        atexit.unregister(self.stop)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> Child:
        """Raises OSError when the command cannot be started."""
        child = Child(name, command, env or {})
        self._running.append(child)
        return child

    def check(self) -> None:
        """Raises ChildError when one of them is no longer running."""
        for child in self._running:
            child.check()

    def said(self) -> str:
        """The end of what each printed, for an error's message; empty when nothing was."""
        texts = [(child.name, child.said(600)) for child in self._running]
        return "".join(f"\n{name} said:\n{text}" for name, text in texts if text)

    def stop(self) -> None:
        while self._running:
            self._running.pop().stop()


def free_ports(count: int) -> list[int]:
    """So many loopback ports in a row, free at this moment. Raises ChildError when none are found.

    Below those that systems hand out by themselves, so that no outgoing connection takes one before
    it is used."""
    for _ in range(ATTEMPTS):
        first = random.randrange(LOWEST_PORT, HIGHEST_PORT - count)
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + count))
    raise ChildError(f"found no {count} free ports in a row on 127.0.0.1")


async def ready(url: str, children: Sequence[Child] = (), seconds: float = READY_S) -> None:
    """Wait until GET url answers 200. Raises ChildError when a child dies first, which is seen at
    once, or time runs out."""
    give_up = time.monotonic() + seconds
    answer = "nothing"
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        while True:
            for child in children:
                child.check()
            try:
                response = await client.get(url)
                if response.status_code == 200:
                    return
                answer = f"{response.status_code} {response.text[:200]}"
            except httpx.HTTPError as error:
                answer = type(error).__name__
            if time.monotonic() > give_up:
                said = "".join(f"\n{child.name} said:\n{child.said()}" for child in children)
                raise ChildError(f"{url} not ready after {seconds:.0f} s ({answer}){said}")
            await asyncio.sleep(0.05)


def run_async(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end on uvloop. SIGTERM ends it as Ctrl-C does, through every finally.

    Raises KeyboardInterrupt for both."""

    async def watched() -> _T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        loop.add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    before = signal.getsignal(signal.SIGTERM)
    try:
        return uvloop.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        # The loop leaves the default, which ends us in the middle of what follows.
        signal.signal(signal.SIGTERM, before)
