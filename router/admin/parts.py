"""What the admin port is given to show and to act on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from router.admin.engines import EngineCalls, Operation
from router.audit import Auditor
from router.config import Settings
from router.fleet.replica import Replica
from router.index import ByteIndex
from router.shadow.shadows import ShadowsReport
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.recent import Recent, RecentAnswers
from router.telemetry.sources import ExactSource, IndexSource, OverflowSource, QueueSource
from router.telemetry.telemetry import Telemetry
from router.types import Role


class Phase(StrEnum):
    """Where the router is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class FleetView(Protocol):
    """The fleet, as far as the admin port needs it. `router.fleet.fleet.Fleet` is one."""

    @property
    def replicas(self) -> Sequence[Replica | None]: ...
    @property
    def usable(self) -> int: ...
    def find(self, url: str) -> Replica:
        """The replica at this URL. Raises KeyError, or ValueError for what is no URL of one."""
        ...

    def add(self, url: str, models: Sequence[str] = (), role: Role | None = None) -> Replica:
        """Let a replica in."""
        ...

    def remove(self, url: str) -> object:
        """Remove the replica from the fleet."""
        ...

    def set_models(self, replica: Replica, models: Sequence[str]) -> None:
        """These are what it serves."""
        ...

    def set_role(self, replica: Replica, role: Role) -> None:
        """This is what it is for."""
        ...

    def drain(self, url: str) -> object:
        """Send the replica at this URL nothing new."""
        ...

    def undrain(self, url: str) -> object:
        """Send it requests again."""
        ...


def off() -> str:
    """No tenants are set up."""
    return "off"


def no_problem() -> str:
    """The default of `AdminParts.problem`."""
    return ""


def alone() -> str:
    """The default of `AdminParts.state`."""
    return "alone"


def nothing(replica: Replica, operation: Operation, emptied: bool) -> None:
    """The default of `AdminParts.engine_changed`."""


class AdapterSource(Protocol):
    """Where LoRA adapters are loaded."""

    def loaded(self, slot: int) -> list[str]:
        """The adapters a replica is believed to have loaded, the most recently used one first."""
        ...

    def with_requests(self, slot: int) -> list[str]:
        """Those of them that have requests."""
        ...


@dataclass(slots=True, frozen=True)
class ConsoleParts:
    """What only the page for people shows."""

    index: ByteIndex
    settings: Callable[[], Settings]
    """The settings in effect."""
    sources: Mapping[str, str]
    """Setting -> where its value came from, for those that somebody gave."""
    build: Mapping[str, str]
    """version, python and policy."""
    weights: Mapping[str, float]
    """The weights of the policy in use; empty where it tells none."""
    front: Callable[[], str]
    """The URL of the clients' port."""
    queue: Callable[[], QueueSource | None]
    overflow: OverflowSource | None = None
    """Targets outside of the fleet; None without any."""


@dataclass(slots=True, frozen=True)
class AdminParts:
    """Everything the admin port needs of the rest."""

    fleet: FleetView
    telemetry: Telemetry
    exposition: Exposition
    explain: Explain
    recent: Recent
    index: IndexSource
    adapters: AdapterSource
    engines: EngineCalls
    phase: Callable[[], Phase]
    console: ConsoleParts
    answers: RecentAnswers = field(default_factory=RecentAnswers)
    engine_changed: Callable[[Replica, Operation, bool], None] = nothing
    """Called when a replica has done what it was asked; the flag: its KV cache is empty now."""
    problem: Callable[[], str] = no_problem
    """What keeps replicas from being found; told by /readyz when there are none."""
    state: Callable[[], str] = alone
    """Whether this router shares with others; told by /readyz."""
    limits: Callable[[], str] = off
    """How tenants' keys and limits are; told by /readyz."""
    auditor: Auditor | None = None
    """What the traffic does to the caches; None where requests are not diagnosed."""
    exact: ExactSource | None = None
    """Exact mode, when it is on."""
    shadows: Callable[[], ShadowsReport] | None = None
    """What shadow policies have found; None without any."""
