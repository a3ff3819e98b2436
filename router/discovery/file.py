"""Replicas from a file that is read again and again: YAML or JSON, a list of URLs or of mappings.

    - http://10.0.0.1:8000
    - url: http://10.0.0.2:8000
      models: [llama]        # optional: otherwise /v1/models is asked
      role: prefill          # optional: decode (the default), prefill or both
      id: host-7-boot-3      # optional: another id behind the same URL is a new replica

A file that is missing, empty or wrong changes nothing: the last list stays, and the log says what
is wrong. `[]` is a list, of nobody.
"""

from __future__ import annotations

import msgspec
import yaml

from router.config.address import parse_address
from router.discovery.target import Audience, Target
from router.types import Role
from router.unreadable_yaml import UNREADABLE_YAML
from router.watched_file import WatchedFile

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Bytes of a file that are read."""


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    models: tuple[str, ...] = ()
    role: Role = "decode"
    id: str = ""


class FileSource:
    """Reads the file every `interval` seconds and tells when it says something else."""

    def __init__(self, path: str, interval: float, audience: Audience) -> None:
        self._file = WatchedFile(
            path, interval, MAX_FILE_BYTES, parse_targets, audience.found, audience.trouble
        )

    async def start(self) -> None:
        """Start the task that reads the file."""
        self._file.start("discovery by file")

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        await self._file.stop()

    async def read(self) -> None:
        """Read the file once, and report what it lists if it has changed."""
        await self._file.read()


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The one in C where PyYAML has it: nine times as fast."""


def parse_targets(text: bytes) -> list[Target]:
    """What a file lists. Raises ValueError that says what is wrong and where."""
    try:
        root = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe one
    except UNREADABLE_YAML as error:
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from None
    if root is None:
        # Half written, or a mount that is not there yet: nobody means it.
        raise ValueError("it is empty; write [] to list no replicas")
    if not isinstance(root, list):
        raise ValueError("it is not a list; write one `- http://10.0.0.1:8000` on each line")
    targets: dict[str, Target] = {}
    for number, item in enumerate(root, 1):
        try:
            entry = msgspec.convert({"url": item} if isinstance(item, str) else item, _Entry)
            url = parse_address(entry.url).url
        except (msgspec.ValidationError, ValueError) as error:
            raise ValueError(f"entry {number}: {error}") from None
        if url in targets:
            raise ValueError(f"entry {number}: {url} is listed twice; remove one")
        targets[url] = Target(url, entry.id, entry.models, entry.role)
    return list(targets.values())
