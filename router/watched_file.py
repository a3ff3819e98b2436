"""A file that the router reads again and again, since an operator or a mount may change it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

_SETTLE_S = 0.1
"""A change counts once the file has stayed so long as it is: a part of it may be valid, too."""
_MOST_LOOKS = 5


class WatchedFile(Generic[T]):
    """Reads a file every `interval` seconds and hands on what it says when that has changed.

    `parse` turns the content into a value, in a thread; it raises ValueError with what is wrong.
    `adopt` takes the value. `trouble` takes what is wrong, or an empty text once nothing is.
    """

    def __init__(
        self,
        path: str,
        interval: float,
        max_bytes: int,
        parse: Callable[[bytes], T],
        adopt: Callable[[T], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._path = Path(path)
        self._interval = interval
        self._max_bytes = max_bytes
        self._parse = parse
        self._adopt = adopt
        self._trouble = trouble
        self._last: bytes | None = None
        self._broken = False
        """Reading it has failed in a way that is nobody's but the router's."""
        self._task: asyncio.Task[None] | None = None

    def start(self, name: str) -> None:
        """Start the task that reads the file, under this name."""
        self._task = asyncio.create_task(self._read_forever(), name=name)

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _read_forever(self) -> None:
        while True:
            try:
                await self.read()
            except Exception:
                # The next content may be one that can be taken: nobody would look again else.
                if not self._broken:
                    log.exception("%s: reading it failed, what was read before stays", self._path)
                self._broken = True
            await asyncio.sleep(self._interval)

    async def read(self) -> None:
        """Read the file once, and hand on what it says if it has changed."""
        try:
            # The content, not the times: what Kubernetes mounts is exchanged by symbolic links.
            text = await asyncio.to_thread(self._content)
            if text == self._last:
                self._trouble("")
                return
            if self._last is not None:
                text = await self._settled(text)
            self._adopt(await asyncio.to_thread(self._parse, text))
        except OSError as error:
            self._trouble(f"{self._path} cannot be read: {error.strerror}")
            return
        except ValueError as error:
            self._trouble(f"{self._path}: {error}")
            return
        self._last = text
        self._broken = False
        self._trouble("")

    async def _settled(self, text: bytes) -> bytes:
        """The content once nobody is writing any more."""
        for _ in range(_MOST_LOOKS):
            await asyncio.sleep(_SETTLE_S)
            before, text = text, await asyncio.to_thread(self._content)
            if text == before:
                break
        return text

    def _content(self) -> bytes:
        with self._path.open("rb") as file:
            text = file.read(self._max_bytes + 1)
        if len(text) > self._max_bytes:
            raise ValueError(f"it is longer than {self._max_bytes} bytes; list less")
        return text
