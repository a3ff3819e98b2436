"""What a scrape reads beside the counters: live objects of other rooms, as far as metrics need
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from router.types import Load


class Legs(Protocol):
    """What became of first legs. `router.disaggregation.disaggregation.Disaggregation` is one."""

    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def prefill_seconds(self) -> float: ...
    @property
    def moved_tokens(self) -> float: ...
    @property
    def seconds_per_token(self) -> float: ...


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
    """What telemetry reads of the prefix index."""

    @property
    def blocks(self) -> int: ...
    def nbytes(self) -> int: ...
    def share(self, slot: int) -> float: ...


class DiscoverySource(Protocol):
    """What telemetry reads of discovery."""

    @property
    def current(self) -> bool: ...


class QueueSource(Protocol):
    """The queue."""

    @property
    def outcomes(self) -> Mapping[str, int]: ...
    @property
    def stretch(self) -> float: ...
    @property
    def sessions(self) -> tuple[int, int]:
        """(active, idle)"""
        ...

    @property
    def work_seconds(self) -> float: ...
    def waiting(self) -> Mapping[tuple[int, str], int]:
        """(priority, where) -> requests."""
        ...

    def kv_wanted(self, slot: int) -> float | None:
        """Share of the replica's KV memory; None where the door does nothing."""
        ...


class OverflowTarget(Protocol):
    """What telemetry reads of a target outside of the fleet."""

    @property
    def name(self) -> str: ...
    @property
    def requests(self) -> Mapping[str, int]: ...
    @property
    def failed(self) -> int: ...
    @property
    def money(self) -> float: ...
    @property
    def usable(self) -> bool: ...
    @property
    def condition(self) -> str:
        """closed, open or half_open: its breaker."""
        ...

    @property
    def daily_budget(self) -> float: ...
    def spent(self, wall: float) -> float: ...


class OverflowSource(Protocol):
    @property
    def targets(self) -> Sequence[OverflowTarget]: ...


class DiagnosisSource(Protocol):
    """Why prompts missed caches, counted by reason. Both have every reason from the beginning."""

    requests: dict[str, int]
    tokens: dict[str, int]

    @property
    def left_out(self) -> int:
        """Requests that were not diagnosed."""


class TraceSource(Protocol):
    """What telemetry reads of tracing."""

    handed_over: int
    dropped: int


class ShadowRow(Protocol):
    """One shadow policy since the start; tokens unless it says otherwise."""

    @property
    def policy(self) -> str: ...
    @property
    def requests(self) -> int: ...
    @property
    def prompt(self) -> int: ...
    @property
    def predicted(self) -> int: ...
    @property
    def delivered(self) -> int: ...
    @property
    def wait(self) -> float: ...
    @property
    def hottest(self) -> float | None: ...


class ShadowSource(Protocol):
    """The shadow policies."""

    left_out: int

    @property
    def trusted(self) -> bool: ...
    @property
    def saved_tokens(self) -> int: ...
    @property
    def saved_seconds(self) -> float: ...
    def rows(self) -> Sequence[ShadowRow]: ...


class AuditSource(Protocol):
    """What sessions did to the caches."""

    step_prompt: list[int]
    """Prompt tokens of the first steps of sessions, the second, ...; the last for all others."""
    step_cached: list[int]
    tool_bytes: dict[str, int]
    resumed: dict[str, int]
    volatile: dict[str, int]


class ExactSource(Protocol):
    """What telemetry reads of exact mode."""

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
    """What telemetry reads of a log."""

    @property
    def dropped(self) -> int: ...


class StateSource(Protocol):
    """What telemetry reads of the state that routers share."""

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


class TenantCounters(Protocol):
    """What one tenant used."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    isolated_tokens: int
    refused: dict[str, int]


class TenantSource(Protocol):
    """Tenants, their use and their limits."""

    auth_failures: dict[str, int]

    def rows(self) -> Sequence[tuple[str, TenantCounters]]:
        """Tenant, or `other`, and its counters."""

    @property
    def shadowed(self) -> Mapping[str, int]: ...
    @property
    def decided(self) -> Mapping[str, int]: ...
    @property
    def shared(self) -> bool: ...


BuildInfo = Mapping[str, str]
"""The labels of warmroute_build_info: version, python, policy."""
