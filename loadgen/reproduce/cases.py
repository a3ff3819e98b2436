"""What docs/results.md compares: arms, workloads and loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from loadgen.workloads import Plan, Poisson, Traced, make

OURS = "cache_aware"
POLICIES = ("round_robin", "least_loaded", "power_of_two", "consistent_hash", OURS)
PEERS = ("peer_sglang", "peer_llmd_approximate", "peer_llmd_precise", "peer_dynamo")
ARMS = (*POLICIES, *PEERS)
REPLICAS = 8
PRESET = "32b-2xh100"
SEEDS = (3, 4)
"""Other ones than the policies' weights were chosen with."""


class Case(msgspec.Struct, frozen=True):
    """One workload at one load."""

    workload: str
    """As on the command line."""
    load: float
    """Requests a second; of a trace, times its own speed."""
    requests: int
    section: str
    seeds: tuple[int, ...] = SEEDS
    settings: Mapping[str, str] = {}
    """Of the workload, where they are not its own."""
    keys: bool = False
    """Clients name their session."""

    @property
    def name(self) -> str:
        """Short, and different from the others'."""
        kind = self.workload.partition(":")[0]
        return f"{kind} x{self.load:g}" if self.traced else f"{kind} {self.load:g}/s"

    @property
    def traced(self) -> bool:
        return ":" in self.workload

    def plan(self, seed: int) -> Plan:
        """Raises WorkloadError for a trace that is not there."""
        arrivals = Traced(self.load) if self.traced else Poisson(self.load)
        return Plan(make(self.workload, self.settings), arrivals, seed=seed, requests=self.requests)


SETTINGS = {"agent": {"most_tokens": "30000"}}
"""An agent's history must fit into the model's context, the answer included."""
LADDER_SEEDS = (3, 4, 5, 6, 7, 8)
"""More, since near the end of KV memory one seed's TTFT mean is up to 30% off another's."""
LADDER_LOADS = (3.0, 10.0, 15.0, 22.0, 40.0, 60.0)
"""The published ladder ends at 60."""
SECTIONS = {
    "agent": "Agents",
    "chat": "Conversations",
    "rag": "Retrieved documents",
    "hot": "One hot prefix",
    "burst": "Bursts",
    "unique": "Nothing to reuse",
    "ladder": "The shared-prefix ladder",
    "mooncake": "Half an hour of the Mooncake conversation trace",
}
"""Titles, in the page's order."""
_LOADS = {
    "agent": (45.0, 90.0),
    "chat": (50.0, 100.0),
    "rag": (12.0, 25.0),
    "hot": (40.0, 80.0),
    "burst": (30.0, 60.0),
    "unique": (18.0, 35.0),
    "ladder": LADDER_LOADS,
}
_WITH_SESSIONS = frozenset({"agent", "chat"})


def cases(trace: Path | None, *, scale: float = 1.0) -> list[Case]:
    """All of them; without a trace, none of it. scale multiplies the requests."""
    made = [
        Case(
            name,
            load,
            max(20, round((2000 if name in _WITH_SESSIONS else 1500) * scale)),
            name,
            seeds=LADDER_SEEDS if name == "ladder" else SEEDS,
            settings=SETTINGS.get(name, {}),
            keys=name in _WITH_SESSIONS,
        )
        for name, loads in _LOADS.items()
        for load in loads
    ]
    if trace is not None:
        # But for where within 3 s a request comes, the trace is the same whatever the seed.
        requests = 0 if scale >= 1 else max(20, round(5000 * scale))
        made.append(Case(f"mooncake:{trace}", 1.0, requests, "mooncake", seeds=SEEDS[:1]))
    return made
