"""Real vLLM engines on this machine: where vLLM is, installing it, starting engines.

    python -m bench.vllm           # installs vLLM where it is missing
    python -m bench.vllm --can     # only says whether engines can be had: exits with 3 if not

E2E_ENGINE_URLS   engines that run already, separated by commas; nothing is installed or started
E2E_VLLM_VENV     an environment that setup.sh made; without it one is made in .venv-vllm
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import httpx

from loadgen.live.processes import die_with_parent, free_ports

ROOT = Path(__file__).parents[1]
KIT = ROOT.parent / "shared/vllm-cpu"
OWN_VENV = ROOT / ".venv-vllm"
NIXL = ROOT / ".venv-nixl"
NIXL_PACKAGES = ("nixl==1.5.2", "nixl-cu12==1.5.1")
"""In a folder of their own, so that an environment that somebody named stays as it is."""
_NIXL_POLLS = ("agent_config.pthrDelay = 0", "agent_config.pthrDelay = 1000")
"""What of NIXL's Python is replaced, and by what: microseconds between two looks of its progress
thread at its connections. Without a pause that thread keeps a core busy in each engine, idle or not,
and the lock that a transfer needs: on two cores, transfers took up to half a minute."""
LMCACHE = ROOT / ".venv-lmcache"
LMCACHE_PACKAGES = (
    *("lmcache==0.5.6", "sortedcontainers==2.4.0"),
    # The release that goes with the OpenTelemetry of vLLM 0.32's environment.
    "opentelemetry-exporter-prometheus==0.66b2",
)
"""What LMCache's server needs beside what vLLM has: 17 MB to fetch, 95 MB of disk."""
LMCACHE_CHUNK = 64
"""Tokens of a block of the store: two of an engine's."""
LMCACHE_START_SECONDS = 120.0
START_SECONDS = 420.0
"""Longest wait for an engine: 20 s alone, several times that beside other work."""
DISK_GB = 5.0
"""2.5 for the environment, as much for what the installer unpacks and keeps meanwhile."""
PYTHONS = ("python3.11", "/usr/bin/python3.11", "/usr/local/bin/python3.11")
"""The version for which there is a torch without CUDA beside the kit."""
CANNOT = 3


class NoEngineError(Exception):
    """This machine cannot run an engine; the text says why."""


class EngineError(Exception):
    """An engine should run here, but something failed."""


class Engine:
    """One vLLM engine on this machine."""

    def __init__(self, venv: Path, **settings: str) -> None:
        """`settings` are environment variables of the kit's start.sh."""
        self.port = free_ports(1)[0]
        # start.sh answers requests for replay 50 ports further.
        self.events = free_ports(51)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        number, self._log_name = tempfile.mkstemp(prefix="engine-", suffix=".log")
        self._log = os.fdopen(number, "wb")
        self._environment = {
            **os.environ,
            "VENV": str(venv),
            "VLLM_LOGGING_LEVEL": "WARNING",
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; `wait` returns once it is up."""
        self._process = subprocess.Popen(
            ["bash", str(KIT / "start.sh"), str(self.port), str(self.events)],
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # Killed, it would leave its own children behind.
            preexec_fn=die_with_parent(signal.SIGTERM),
        )

    def wait(self) -> None:
        """Wait until the engine answers. Raises EngineError."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                raise EngineError(f"the engine ended: {self._said()}")
            try:
                if httpx.get(self.url + "/health", timeout=5.0, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        raise EngineError(f"the engine was not up after {START_SECONDS:.0f} s: {self._said()}")

    def kill(self) -> None:
        """Kill all its processes at once, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        self._log.close()
        Path(self._log_name).unlink(missing_ok=True)

    def _said(self) -> str:
        return Path(self._log_name).read_text(errors="replace")[-1500:]


class Given:
    """An engine that already runs."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")


def given() -> list[Given]:
    """The engines that E2E_ENGINE_URLS names."""
    return [Given(url) for url in os.environ.get("E2E_ENGINE_URLS", "").split(",") if url]


def find_venv() -> Path:
    """Where vLLM is installed. Raises NoEngineError."""
    named = os.environ.get("E2E_VLLM_VENV")
    venv = Path(named) if named else OWN_VENV
    if not (KIT / "start.sh").exists():
        raise NoEngineError(f"there is no {KIT}, and E2E_ENGINE_URLS is not set")
    if named and not (venv / "bin/python").exists():
        raise NoEngineError(f"E2E_VLLM_VENV: there is no {venv}/bin/python")
    if not named and not _mark(venv).exists():
        raise NoEngineError(f"vLLM is not installed in {venv}: `make e2e` installs it")
    return venv


def _mark(venv: Path) -> Path:
    """Made when everything is installed: an installation may have been interrupted."""
    return venv / "installed"


def _nixl_mark() -> Path:
    """Made when NIXL is installed and its progress thread pauses."""
    return NIXL / "installed-with-pauses"


def find_nixl() -> Path:
    """Where NIXL is installed. Raises NoEngineError."""
    if not _nixl_mark().exists():
        raise NoEngineError(f"NIXL is not installed in {NIXL}: `make e2e` installs it")
    return NIXL


def install_nixl() -> None:
    """Install what engines need to hand KV blocks to each other. Raises EngineError."""
    if given() or _nixl_mark().exists():
        return
    _install_beside(NIXL, NIXL_PACKAGES)
    api = NIXL / "nixl_cu12/_api.py"
    found, replaced = _NIXL_POLLS
    text = api.read_text()
    if found not in text:
        raise EngineError(f"{api} does not say {found!r}: NIXL is another one than is known here")
    api.write_text(text.replace(found, replaced))
    _nixl_mark().touch()


def _install_beside(folder: Path, packages: Sequence[str]) -> None:
    """Install packages that vLLM's environment lacks in a folder. Raises EngineError."""
    command = [str(find_venv() / "bin/python"), "-m", "pip", "install", "-qq", "--no-deps"]
    command += ["--disable-pip-version-check", "--upgrade", "--target", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(
            f"{packages[0]} could not be installed: {done.stdout[-500:]} {done.stderr[-1500:]}"
        )


def find_lmcache() -> Path:
    """Where LMCache is installed. Raises NoEngineError."""
    if not _mark(LMCACHE).exists():
        raise NoEngineError(f"LMCache is not installed in {LMCACHE}: `make e2e` installs it")
    return LMCACHE


def install_lmcache() -> None:
    """Install a store that engines keep blocks in. Raises EngineError."""
    if given() or _mark(LMCACHE).exists():
        return
    _install_beside(LMCACHE, LMCACHE_PACKAGES)
    _mark(LMCACHE).touch()


class LMCache:
    """A server of LMCache, which keeps blocks in CPU memory for the engines that it is named to."""

    def __init__(self, gigabytes: float) -> None:
        """Raises NoEngineError. gigabytes: how much it keeps, of 10^9 bytes."""
        self._folder = find_lmcache()
        self._python = find_venv() / "bin/python"
        self.port, self._metrics = free_ports(2)
        self._size = str(gigabytes)
        number, self._log_name = tempfile.mkstemp(prefix="lmcache-", suffix=".log")
        self._log = os.fdopen(number, "wb")
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self) -> dict[str, str]:
        """Settings of an engine that uses it."""
        connector: dict[str, object] = {
            "kv_connector": "LMCacheMPConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "lmcache.mp.host": "tcp://127.0.0.1",
                "lmcache.mp.port": self.port,
            },
        }
        return {**self._environment(), "EXTRA": _transfer_config(connector)}

    def _environment(self) -> dict[str, str]:
        # Without the second it would report its use to its makers.
        return {"PYTHONPATH": str(self._folder), "LMCACHE_TRACK_USAGE": "false"}

    def start(self) -> None:
        """Start it, and wait until it listens. Raises EngineError."""
        self._process = subprocess.Popen(
            [
                *(str(self._python), "-m", "lmcache.v1.multiprocess.server"),
                *("--host", "127.0.0.1", "--port", str(self.port)),
                *("--prometheus-port", str(self._metrics)),
                *("--chunk-size", str(LMCACHE_CHUNK), "--l1-size-gb", self._size),
                *("--eviction-policy", "LRU", "--supported-transfer-mode", "engine_driven"),
            ],
            env={**os.environ, **self._environment()},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        until = time.monotonic() + LMCACHE_START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5.0).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise EngineError(f"LMCache's server did not start: {self._said()}")

    def close(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._log.close()
        Path(self._log_name).unlink(missing_ok=True)

    def _said(self) -> str:
        return Path(self._log_name).read_text(errors="replace")[-1500:]


def nixl_settings(nixl: Path, role: str, lease_seconds: int = 30) -> dict[str, str]:
    """Settings of an engine with NIXL. role: kv_producer or kv_consumer. lease_seconds: how long it
    keeps blocks that nobody fetches. It has a new id each time, as an engine must that comes back.
    """
    connector: dict[str, object] = {
        "kv_connector": "NixlConnector",
        "kv_role": role,
        "kv_buffer_device": "cpu",
        "engine_id": uuid.uuid4().hex,
        "kv_connector_extra_config": {"kv_lease_duration": lease_seconds},
    }
    return {
        "PYTHONPATH": str(nixl),
        "UCX_TLS": "tcp,sm,self",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_ports(1)[0]),
        "EXTRA": _transfer_config(connector),
    }


def store_settings(folder: Path) -> dict[str, str]:
    """Settings of an engine that keeps the blocks of prompts in a folder, where others find them."""
    connector: dict[str, object] = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    return {"EXTRA": _transfer_config(connector)}


def _transfer_config(connector: dict[str, object]) -> str:
    return "--kv-transfer-config " + json.dumps(connector, separators=(",", ":"))


def python_for_vllm() -> str:
    """A Python that vLLM can use. Raises NoEngineError, also when disk space is short."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < DISK_GB:
        raise NoEngineError(
            f"installing vLLM takes {DISK_GB:.0f} GB of disk, and {free:.1f} GB are free beside "
            f"{OWN_VENV}"
        )
    for python in PYTHONS:
        # Asked by running it: a version manager's stand-in may have nothing behind it.
        try:
            asked = subprocess.run(
                [python, "-c", "import venv, ensurepip"], capture_output=True, check=False
            )
        except OSError:
            continue
        if asked.returncode == 0:
            return python
    raise NoEngineError("installing vLLM takes python3.11 with venv, and there is none")


def install() -> None:
    """Install vLLM if it is missing. Raises NoEngineError and EngineError."""
    if given():
        return
    try:
        find_venv()
    except NoEngineError:
        if os.environ.get("E2E_VLLM_VENV") or not (KIT / "setup.sh").exists():
            raise
    else:
        return
    python = python_for_vllm()
    print(f"installing vLLM into {OWN_VENV}: 2.5 GB, about two minutes", flush=True)
    command = ["bash", str(KIT / "setup.sh"), str(OWN_VENV), python]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"setup.sh failed: {done.stdout[-1000:]} {done.stderr[-2000:]}")
    _mark(OWN_VENV).touch()


def check() -> None:
    """See whether engines run, are installed, or can be installed. Raises NoEngineError."""
    if given():
        return
    try:
        find_venv()
    except NoEngineError:
        if os.environ.get("E2E_VLLM_VENV") or not (KIT / "setup.sh").exists():
            raise
        python_for_vllm()


async def empty(urls: Sequence[str]) -> None:
    """Empty the prefix caches of the engines."""
    async with httpx.AsyncClient(trust_env=False, timeout=120.0) as client:
        for url in urls:
            (await client.post(url + "/reset_prefix_cache")).raise_for_status()


async def metrics_of(url: str) -> str:
    """The metrics page of an engine or a gateway."""
    async with httpx.AsyncClient(trust_env=False, timeout=120.0) as client:
        return (await client.get(url + "/metrics", follow_redirects=True)).text


async def block_of(url: str) -> int:
    """Tokens in one block of an engine."""
    found = re.search(r'vllm:cache_config_info\{[^\n]*block_size="(\d+)"', await metrics_of(url))
    return int(found[1]) if found else 16


def main() -> int:
    """The command `python -m bench.vllm`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--can", action="store_true")
    options = parser.parse_args()
    try:
        if options.can:
            check()
        else:
            install()
            try:
                install_nixl()
            except EngineError as why:
                print(f"the tests of engines that hand blocks over are skipped: {why}")
            try:
                install_lmcache()
            except EngineError as why:
                print(f"the tests of engines with a store behind them are skipped: {why}")
    except NoEngineError as why:
        print(why)
        return CANNOT
    except EngineError as why:
        print(why, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
