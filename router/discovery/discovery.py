"""Finds replicas as the settings say, and keeps the fleet in step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from router.config import Settings
from router.discovery.membership import Membership
from router.discovery.target import Source, Target
from router.fleet.fleet import Fleet

log = logging.getLogger(__name__)

MAX_MISSED_READINGS = 2.5
"""Readings in which a name server or a file may miss a replica before its cache is forgotten."""


class Discovery:
    """One source and the fleet it fills. It is the source's audience.

    An unreachable source changes nothing: the last known fleet stays, and health checks go on.
    """

    def __init__(self, settings: Settings, fleet: Fleet) -> None:
        self.kind = settings.discovery
        polled = self.kind in ("dns", "file")
        linger = MAX_MISSED_READINGS * settings.discovery_interval if polled else 0.0
        self._members = Membership(fleet, linger, self.note, self._settled)
        self._source = _source(settings, self)
        self._first = asyncio.Event()
        self._problem = ""
        self.on_objectives: Callable[[Mapping[str, int]], None] = lambda _: None
        """Called with the names of objectives and their priority: higher goes first."""
        self._noted: set[str] = set()

    @property
    def current(self) -> bool:
        """Whether the fleet is as the source has it; False while the last known one is used."""
        return self._first.is_set() and not self._problem

    @property
    def problem(self) -> str:
        """What keeps it from being current; empty when it is."""
        if self._problem or self._first.is_set():
            return self._problem
        return f"{self.kind} has not answered yet"

    async def start(self) -> None:
        """Begin. Raises DiscoveryError for what waiting will not mend."""
        await self._source.start()

    async def stop(self) -> None:
        """End; the fleet stays as it is."""
        await self._source.stop()
        self._members.close()

    async def wait_first(self, within: float) -> bool:
        """Wait until the source told for the first time. False when time ran out before."""
        try:
            async with asyncio.timeout(within):
                await self._first.wait()
        except TimeoutError:
            return False
        return True

    # What the source tells

    def found(self, targets: Sequence[Target]) -> None:
        """All there are, now."""
        self._members.apply(targets)

    def objectives(self, priorities: Mapping[str, int]) -> None:
        """What requests may name, as it is now."""
        self.on_objectives(priorities)

    def _settled(self) -> None:
        """The fleet is as the source has it."""
        if not self._first.is_set():
            self._first.set()
            log.info("discovery by %s found %d replicas", self.kind, len(self._members))

    def trouble(self, problem: str) -> None:
        """What keeps the source from knowing; empty when it knows again."""
        if problem == self._problem:
            return
        if problem:
            kept = f"; the {len(self._members)} known replicas stay" if len(self._members) else ""
            log.error("discovery: %s%s", problem, kept)
        else:
            log.info("discovery by %s works again", self.kind)
        self._problem = problem

    def note(self, problem: str) -> None:
        """Something to mend that leaves the rest as it is. Logged once."""
        if problem not in self._noted:
            self._noted.add(problem)
            log.warning("discovery: %s", problem)


def _source(settings: Settings, audience: Discovery) -> Source:
    if settings.discovery == "kubernetes":
        # Needs an optional package: imported by those who use it only.
        from router.discovery.kubernetes import KubernetesSource

        return KubernetesSource(settings, audience)
    if settings.discovery == "dns":
        from router.discovery.dns import DnsSource

        return DnsSource(settings.discovery_dns, settings.discovery_interval, audience)
    if settings.discovery == "file":
        from router.discovery.file import FileSource

        return FileSource(settings.discovery_file, settings.discovery_interval, audience)
    raise ValueError(f"discovery cannot be {settings.discovery!r}")
