"""Runs the blocks of the quick starts in a shell, in order, as a reader runs them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loadgen.live.processes import free_ports

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "quickstart"
NOT_RUN = re.compile(r"not run\s+by the\s+tests", re.IGNORECASE)
"""What the paragraph above a block says when nothing here can run it."""
SECONDS = 150
BLOCK = re.compile(r"^( *)```sh\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
MARKS = [
    pytest.mark.timeout(2 * SECONDS),
    pytest.mark.skipif(shutil.which("curl") is None, reason="the pages use curl"),
]


class Shell:
    """Runs blocks in bash, with free ports in place of the pages', and leaves no process behind."""

    PORTS = ("8000", "8001", "8002", "8010", "9002", "9090", "9091", "9901", "6379")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(self.PORTS, free_ports(len(self.PORTS)), strict=True))
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        script = self.with_ports(script)
        with (self._folder / name).open("wb") as output:
            bash = subprocess.Popen(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=self._folder,
                env={
                    **os.environ,
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "WARMROUTE_PORT": str(self._ports["8000"]),
                    "WARMROUTE_ADMIN_PORT": str(self._ports["9090"]),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(bash)
        return bash

    def with_ports(self, text: str) -> str:
        """The text with free ports in place of the pages'."""
        return re.sub(r"\b\d{4}\b", lambda word: str(self._ports.get(word[0], word[0])), text)

    def run(self, script: str) -> str:
        """What the blocks print. A command that fails, fails."""
        bash = self.start("output", script)
        try:
            status: int | None = bash.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        said = (self._folder / "output").read_text("utf-8")
        assert status == 0, said[-8000:]
        return said

    def close(self) -> None:
        for bash in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(bash.pid, signal.SIGKILL)  # its session: nobody else is in it
            bash.wait()


def blocks(page: str) -> str:
    """A page's blocks as one script, without those that the page says are not run."""
    text = (FOLDER / page).read_text("utf-8")
    found = []
    for block in BLOCK.finditer(text):
        above = text[: block.start()].rstrip().rpartition("\n\n")[2]
        if not NOT_RUN.search(above):
            found.append(textwrap.dedent(block[2]))
    return "\n".join(found)


def cached(said: str) -> list[int]:
    """What the answers' usage says, in order."""
    return [int(tokens) for tokens in re.findall(r'"cached_tokens":(\d+)', said)]
