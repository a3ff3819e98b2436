"""Real vLLM engines for the tests: started here, or those that the environment names.

E2E_ENGINE_URLS   engines that run already, separated by commas; tests that stop one are skipped
E2E_VLLM_VENV     an environment that setup.sh made; without it one is made when `-m e2e` is asked for
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
KIT = ROOT.parent / "shared/vllm-cpu"
START_SECONDS = 240.0


class NoEngineError(Exception):
    """There is none, and why."""


class Engine:
    """One engine on this machine."""

    def __init__(self, venv: Path, **settings: str) -> None:
        self.port = free_ports(1)[0]
        self.events = free_ports(1, apart=50)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        number, self._log_name = tempfile.mkstemp(prefix="engine-", suffix=".log")
        self._log = os.fdopen(number, "wb")
        self._environment = {
            **os.environ,
            "VENV": str(venv),
            "MAX_LEN": "4096",
            "NUM_BLOCKS": "160",
            "VLLM_LOGGING_LEVEL": "WARNING",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["bash", str(KIT / "start.sh"), str(self.port), str(self.events)],
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                raise NoEngineError(f"the engine ended, see {self._log_name}")
            try:
                if httpx.get(self.url + "/health", timeout=2.0, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        raise NoEngineError(f"the engine did not start in time, see {self._log_name}")

    def kill(self) -> None:
        """As a crash would: all its processes, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Given:
    """An engine that runs already."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")


def find_venv(*, make: bool) -> Path:
    """Where vLLM is installed. Raises NoEngineError."""
    if not (KIT / "start.sh").exists():
        raise NoEngineError(f"there is no {KIT}, and E2E_ENGINE_URLS is not set")
    named = os.environ.get("E2E_VLLM_VENV")
    venv = Path(named) if named else ROOT / ".venv-vllm"
    if (venv / "bin/python").exists():
        return venv
    if named or not make:
        raise NoEngineError(
            f"vLLM is not installed in {venv}: make e2e installs it, or set E2E_VLLM_VENV"
        )
    done = subprocess.run(
        ["bash", str(KIT / "setup.sh"), str(venv)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoEngineError(f"setup.sh failed: {done.stdout[-300:]} {done.stderr[-300:]}")
    return venv


def free_ports(count: int, apart: int = 0) -> list[int]:
    """Ports nobody has just now; each with the one `apart` further free too."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            if not apart:
                found.append(port)
                continue
            if port + apart > 65_535:
                continue
            with socket.socket() as other:
                try:
                    other.bind(("127.0.0.1", port + apart))
                except OSError:
                    continue
                found.append(port)
    return found
