"""What a source of replicas tells, and to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from router.types import Role


class Target(msgspec.Struct, frozen=True, gc=False):
    """One endpoint as its source sees it just now."""

    url: str
    identity: str = ""
    """Who is behind the URL, such as a pod's UID: another one is a new replica with an empty cache.
    Empty when the source cannot tell."""
    models: tuple[str, ...] = ()
    """What it serves, when the source says so; empty leaves it to /v1/models."""
    role: Role = "decode"
    ready: bool = True
    """Not ready: no new requests, but it may come back with its cache."""
    leaving: bool = False
    """It is shutting down: no new requests, and it goes when those in flight are done."""


class Audience(Protocol):
    """Who hears what a source found. All methods are called on the event loop."""

    def found(self, targets: Sequence[Target]) -> None:
        """All there are, now. What is not among them has left."""

    def objectives(self, priorities: Mapping[str, int]) -> None:
        """Objectives that requests may name, with their priority: higher goes first."""

    def trouble(self, problem: str) -> None:
        """What keeps the source from knowing; empty when it knows again."""

    def note(self, problem: str) -> None:
        """Something to mend that leaves the rest as it is, such as an endpoint without a port."""


class Source(Protocol):
    """One way to find replicas."""

    async def start(self) -> None:
        """Begin to tell the audience. Raises DiscoveryError for what waiting will not mend."""

    async def stop(self) -> None:
        """Tell nothing more, from here on, and free everything."""


class DiscoveryError(Exception):
    """Discovery cannot start; the text says why and what to do."""
