"""What a scrape reads beside the counters: live objects of other rooms, as far as metrics need
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.types import Load


class BreakerSource(Protocol):
    @property
    def state(self) -> str: ...


class ReplicaSource(Protocol):
    """A replica. `router.fleet.replica.Replica` is one."""

    @property
    def slot(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def load(self) -> Load: ...
    @property
    def breaker(self) -> BreakerSource: ...


class FleetSource(Protocol):
    """The fleet: replicas by slot, and the mask of those that requests may be sent to."""

    @property
    def replicas(self) -> Sequence[ReplicaSource | None]: ...
    @property
    def usable(self) -> int: ...


class IndexSource(Protocol):
    """The prefix index."""

    @property
    def blocks(self) -> int: ...
    def nbytes(self) -> int: ...
    def share(self, slot: int) -> float: ...


class LogSource(Protocol):
    """The access log."""

    @property
    def dropped(self) -> int: ...


BuildInfo = Mapping[str, str]
"""The labels of warmroute_build_info: version, python, policy."""
