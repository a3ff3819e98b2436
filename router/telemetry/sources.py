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
    @property
    def kv_tokens(self) -> int: ...
    @property
    def kv_tokens_known(self) -> bool: ...


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


class DiscoverySource(Protocol):
    """What finds replicas."""

    @property
    def current(self) -> bool: ...


class ExactSource(Protocol):
    """Exact mode."""

    prompts: dict[str, int]
    """Why prompts were not tokenised -> how many; "exact" for those that were."""

    def confidence(self, slot: int) -> float: ...
    def why_not(self, slot: int) -> str: ...
    def event_counts(self, slot: int) -> dict[str, int]: ...
    def next_event(self, slot: int) -> int | None: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def memory_tokens(self) -> int: ...


class LogSource(Protocol):
    """The access log."""

    @property
    def dropped(self) -> int: ...


class StateSource(Protocol):
    """What is shared with other routers."""

    @property
    def up(self) -> bool: ...
    @property
    def lag(self) -> float: ...
    @property
    def routers(self) -> int: ...
    @property
    def facts_sent(self) -> int: ...
    @property
    def facts_received(self) -> int: ...
    @property
    def facts_dropped(self) -> int: ...
    @property
    def batches_sent(self) -> int: ...
    @property
    def batches_received(self) -> int: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def errors(self) -> int: ...


BuildInfo = Mapping[str, str]
"""The labels of warmroute_build_info: version, python, policy."""
