"""SIGHUP: read the settings again and take up those that may change while a router serves."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from router.config import TABLE, ConfigError, Settings
from router.telemetry import logs

if TYPE_CHECKING:
    from router.app import App

log = logging.getLogger(__name__)

Reread = Callable[[], Settings]
"""The settings as they are now, from where they came. Raises ConfigError."""


class Reloader:
    """What a router was told last, and how to ask again."""

    def __init__(self, settings: Settings, reread: Reread) -> None:
        """settings: as they were read, before a worker's own were put in."""
        self._settings = settings
        self._reread = reread

    async def changed(self) -> dict[str, object] | None:
        """The live settings that are others than those taken up last; None where something is wrong
        with any of them.

        Those that need a restart are named in the log.
        """
        try:
            # It reads files, which may be slow to come.
            now = await asyncio.to_thread(self._reread)
        except ConfigError as error:
            log.error("the settings have errors and stay as they were:\n%s", error)
            return None
        names = [name for name in TABLE if getattr(now, name) != getattr(self._settings, name)]
        live = {name: getattr(now, name) for name in names if TABLE[name].live}
        if fixed := [name for name in names if name not in live]:
            log.warning("these settings have changed and need a restart: %s", ", ".join(fixed))
        return live

    def _taken(self, live: dict[str, object]) -> None:
        """They hold now, and are not told as changed any more."""
        self._settings = msgspec.structs.replace(self._settings, **live)

    async def router(self, app: App) -> None:
        """Have a router take up what is live."""
        live = await self.changed()
        if live is None:
            return
        try:
            app.adopt(live)
        except (OSError, ssl.SSLError) as error:
            log.error("cannot read the certificate again, all stays as it was: %s", error)
            return
        self._taken(live)
        log.info("settings read again, changed: %s", ", ".join(live) or "none")

    async def supervisor(self) -> None:
        """The same for a supervisor, which has a log and no more; workers are told by signal."""
        live = await self.changed()
        if live is None:
            return
        if "log_level" in live:
            logs.set_level(str(live["log_level"]))
        self._taken(live)
