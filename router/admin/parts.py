"""What the admin port is given to show and to act on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from router.admin.engines import EngineCalls, Operation
from router.fleet.replica import Replica
from router.telemetry.explain import Explain
from router.telemetry.exposition import Exposition
from router.telemetry.recent import Recent
from router.telemetry.sources import ExactSource, IndexSource
from router.telemetry.telemetry import Telemetry


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
    def drain(self, url: str) -> object:
        """Send the replica at this URL nothing new."""
        ...

    def undrain(self, url: str) -> object:
        """Send it requests again."""
        ...


def no_problem() -> str:
    """The default of `AdminParts.problem`."""
    return ""


def alone() -> str:
    """The default of `AdminParts.state`."""
    return "alone"


def nothing(replica: Replica, operation: Operation, emptied: bool) -> None:
    """The default of `AdminParts.engine_changed`."""


@dataclass(slots=True, frozen=True)
class AdminParts:
    """Everything the admin port needs of the rest."""

    fleet: FleetView
    telemetry: Telemetry
    exposition: Exposition
    explain: Explain
    recent: Recent
    index: IndexSource
    engines: EngineCalls
    phase: Callable[[], Phase]
    engine_changed: Callable[[Replica, Operation, bool], None] = nothing
    """Called when a replica has done what it was asked; the flag: its KV cache is empty now."""
    problem: Callable[[], str] = no_problem
    """What keeps replicas from being found; told by /readyz when there are none."""
    state: Callable[[], str] = alone
    """Whether this router shares with others; told by /readyz."""
    exact: ExactSource | None = None
    """Exact mode, when it is on."""
