"""Replicas from a file that is read again and again: YAML or JSON, a list of URLs or of mappings.

    - http://10.0.0.1:8000
    - url: http://10.0.0.2:8000
      models: [llama]        # optional: otherwise /v1/models is asked
      id: host-7-boot-3      # optional: another id behind the same URL is a new replica

A file that is missing, empty or wrong changes nothing: the last list stays, and the log says what
is wrong. `[]` is a list, of nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec
import yaml

from router.discovery.target import Audience, Target
from router.fleet.replica import parse_address

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Bytes of a file that are read."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    models: tuple[str, ...] = ()
    id: str = ""


class FileSource:
    """Reads the file every `interval` seconds and tells when it says something else."""

    def __init__(self, path: str, interval: float, audience: Audience) -> None:
        self._path = Path(path)
        self._interval = interval
        self._audience = audience
        self._last: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._read_forever(), name="discovery by file")

    async def stop(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _read_forever(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(self._interval)

    async def read(self) -> None:
        """One look."""
        try:
            # The content, not the times: what Kubernetes mounts is exchanged by symbolic links.
            text = await asyncio.to_thread(self._content)
            if text == self._last:
                return
            targets = parse_targets(text)
        except OSError as error:
            self._audience.trouble(f"{self._path} cannot be read: {error.strerror}")
            return
        except ValueError as error:
            self._audience.trouble(f"{self._path}: {error}")
            return
        self._last = text
        self._audience.found(targets)
        self._audience.trouble("")

    def _content(self) -> bytes:
        with self._path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"longer than {MAX_FILE_BYTES} bytes")
        return text


def parse_targets(text: bytes) -> list[Target]:
    """What a file lists. Raises ValueError that says what is wrong and where."""
    try:
        root = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from None
    if root is None:
        # Half written, or a mount that is not there yet: nobody means it.
        raise ValueError("it is empty; write [] where there are to be no replicas")
    if not isinstance(root, list):
        raise ValueError("not a list; write one `- http://10.0.0.1:8000` on each line")
    targets: dict[str, Target] = {}
    for number, item in enumerate(root, 1):
        try:
            entry = msgspec.convert({"url": item} if isinstance(item, str) else item, _Entry)
            url = parse_address(entry.url).url
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"entry {number}: {error}") from None
        if url in targets:
            raise ValueError(f"entry {number}: {url} is listed twice")
        targets[url] = Target(url, entry.id, entry.models)
    return list(targets.values())
