"""What docs/design/results.md compares: arms, workloads, engines and loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from loadgen.reproduce.fleets import A10G, ANOTHER, H100_8B, H100_32B, H100_70B, Fleet
from loadgen.workloads import Arrivals, Closed, Plan, Poisson, Ramp, Traced, make

OURS = "cache_aware"
POLICIES = ("round_robin", "least_loaded", "power_of_two", "consistent_hash", OURS)
PEERS = ("peer_sglang", "peer_llmd_approximate", "peer_llmd_precise", "peer_dynamo")
POOLED = "pooled"
"""One server with all the replicas' speed and memory: what routing can come to, not a rule."""
ARMS = (*POLICIES, *PEERS, POOLED)
SEEDS = (5, 6)
"""Other ones than the policies' weights were chosen with."""


class Case(msgspec.Struct, frozen=True):
    """One workload at one load on one fleet."""

    workload: str
    """The workload, written as on the command line."""
    load: float
    """Requests a second; of a trace, times its own speed; of a closed loop, sessions at a time."""
    requests: int
    section: str
    seeds: tuple[int, ...] = SEEDS
    settings: Mapping[str, str] = {}
    """Of the workload, where they are not its own."""
    keys: bool = False
    """Whether clients name their session in the request."""
    chosen: bool = False
    """The policies' weights were chosen on it, with other seeds."""
    fleet: Fleet = H100_32B
    label: str = ""
    """What tells it from others of its workload and load."""
    arrivals: str = "poisson"
    """Or `closed` (so many sessions at a time), or `ramp` (from a tenth of the load up to it)."""

    @property
    def name(self) -> str:
        """A short name that no other case has."""
        kind = self.workload.partition(":")[0]
        if self.traced:
            return f"{kind} x{self.load:g}"
        said = f"{self.load:g} sessions" if self.arrivals == "closed" else f"{self.load:g}/s"
        return f"{kind} {said}" + (f", {self.label}" if self.label else "")

    @property
    def traced(self) -> bool:
        return ":" in self.workload

    def plan(self, seed: int) -> Plan:
        """Raises WorkloadError for a trace that is not there."""
        arrivals: Arrivals
        if self.traced:
            arrivals = Traced(self.load)
        elif self.arrivals == "closed":
            arrivals = Closed(int(self.load), CLOSED_SPREAD)
        elif self.arrivals == "ramp":
            arrivals = Ramp(self.load / 10, self.load, self.requests / (0.55 * self.load))
        else:
            arrivals = Poisson(self.load)
        return Plan(make(self.workload, self.settings), arrivals, seed=seed, requests=self.requests)


SETTINGS = {"agent": {"most_tokens": "30000"}}
"""An agent's history must fit into the model's context, the answer included."""
LADDER_SEEDS = (5, 6, 7)
"""More, since near the end of KV memory one seed's TTFT mean is up to 30% off another's."""
LADDER_LOADS = (3.0, 10.0, 15.0, 22.0, 40.0, 60.0)
"""The published ladder ends at 60."""
CLOSED_SPREAD = 20.0
"""Seconds in which the first sessions of a closed loop start."""
SECTIONS = {
    "agent": "Agents",
    "chat": "Conversations",
    "rag": "Retrieved documents",
    "hot": "One hot prefix",
    "burst": "Bursts",
    "unique": "Nothing to reuse",
    "ladder": "The shared-prefix ladder",
    "mooncake": "Half an hour of the Mooncake conversation trace",
    "long": "Long agents that share large prompts",
    "another": "Another engine, other arrivals",
    "uneven": "Replicas of different speed",
}
"""Titles of the page's sections, in its order."""
SWEPT = frozenset({"agent", "chat", "rag", "hot", "burst", "unique", "ladder"})
"""Sections whose cases differ in nothing but their load: these have a chart."""
_LOADS = {
    "agent": (45.0, 90.0),
    "chat": (50.0, 100.0),
    "rag": (12.0, 25.0),
    "hot": (40.0, 80.0),
    "burst": (30.0, 60.0),
    "unique": (18.0, 35.0),
    "ladder": LADDER_LOADS,
}
_CHOSEN = {
    "agent": (45.0,),
    "chat": (50.0,),
    "rag": (25.0,),
    "hot": (40.0,),
    "burst": (60.0,),
    "unique": (35.0,),
    "ladder": (10.0, 22.0),
}
"""The loads that weights were chosen on."""
_WITH_SESSIONS = frozenset({"agent", "chat"})


_TOOLS = {
    "tool_schemas": "16",
    "tool_tokens": "600",
    "system_tokens": "4000",
    "result_tokens": "1500",
    "tool_pause": "4",
    "output_tokens": "150",
}
"""Agents with a prompt of some 15,000 tokens before their task begins."""
_SMALL_TOOLS = {
    "tool_schemas": "8",
    "tool_tokens": "400",
    "system_tokens": "2000",
    "result_tokens": "800",
    "most_tokens": "25000",
}
"""The same for an engine whose whole cache has 27,000 tokens."""
_FITS = {**_TOOLS, "most_tokens": "30000"}


def _long(
    applications: int,
    steps: int,
    load: float,
    requests: int,
    fleet: Fleet,
    settings: Mapping[str, str],
    *,
    arrivals: str = "closed",
    seeds: tuple[int, ...] = SEEDS[:1],
    chosen: bool = False,
) -> Case:
    return Case(
        "agent",
        load,
        requests,
        "long",
        seeds=seeds,
        settings={**settings, "applications": str(applications), "steps": str(steps)},
        keys=True,
        chosen=chosen,
        fleet=fleet,
        label=f"{applications} app{'s' if applications > 1 else ''}, {steps} steps, {fleet.name}",
        arrivals=arrivals,
    )


def _of(fleet: Fleet, replicas: int) -> Fleet:
    return msgspec.structs.replace(fleet, replicas=replicas)


_LONG = (
    _long(1, 20, 3.0, 1500, H100_70B, _TOOLS, arrivals="poisson", seeds=SEEDS, chosen=True),
    _long(1, 20, 48.0, 1000, H100_70B, _TOOLS),
    _long(2, 10, 48.0, 1000, H100_70B, _TOOLS),
    _long(4, 30, 60.0, 1200, H100_70B, _TOOLS, chosen=True),
    _long(1, 5, 32.0, 1000, H100_32B, _FITS, seeds=SEEDS, chosen=True),
    _long(4, 20, 32.0, 1000, H100_32B, _FITS),
    _long(1, 20, 96.0, 1500, _of(H100_32B, 16), _FITS, chosen=True),
    _long(2, 20, 128.0, 1500, _of(H100_70B, 32), _TOOLS),
    _long(3, 10, 256.0, 1500, _of(H100_70B, 64), _TOOLS),
    _long(1, 10, 8.0, 600, A10G, _SMALL_TOOLS),
    _long(4, 10, 8.0, 600, A10G, _SMALL_TOOLS, chosen=True),
)
_ANOTHER = (
    Case("agent", 20.0, 1200, "another", keys=True, fleet=Fleet(ANOTHER), label="another engine"),
    Case("rag", 10.0, 1000, "another", fleet=Fleet(ANOTHER), label="another engine"),
    Case("hot", 30.0, 1200, "another", fleet=Fleet(ANOTHER), label="another engine"),
    Case("unique", 20.0, 1200, "another", fleet=Fleet(ANOTHER), label="another engine"),
    Case("chat", 80.0, 2000, "another", keys=True, fleet=H100_8B, label="growing", arrivals="ramp"),
    Case("unique", 40.0, 1500, "another", label="growing", arrivals="ramp"),
    Case(
        "agent",
        60.0,
        1500,
        "another",
        settings=SETTINGS["agent"],
        keys=True,
        label="closed",
        arrivals="closed",
    ),
)
"""No weight was fitted to any of them."""
_HALF = Fleet(H100_32B.engine, slow=4, times=2.0)
_STRAGGLER = Fleet(H100_32B.engine, slow=1, times=3.0, since=0.25)
_UNEVEN = (
    Case("agent", 45.0, 2000, "uneven", settings=SETTINGS["agent"], keys=True, chosen=True,
         fleet=_HALF, label="half at half speed"),
    Case("rag", 14.0, 1500, "uneven", fleet=_HALF, label="half at half speed"),
    Case("unique", 26.0, 1500, "uneven", chosen=True, fleet=_HALF, label="half at half speed"),
    Case("agent", 45.0, 2000, "uneven", settings=SETTINGS["agent"], keys=True,
         fleet=_STRAGGLER, label="one becomes slow"),
    Case("unique", 30.0, 1500, "uneven", chosen=True, fleet=_STRAGGLER, label="one becomes slow"),
    Case("rag", 18.0, 1500, "uneven", fleet=_STRAGGLER, label="one becomes slow"),
)  # fmt: skip
"""One that becomes slow takes three times as long for everything after a quarter of the run."""


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
            chosen=load in _CHOSEN[name],
        )
        for name, loads in _LOADS.items()
        for load in loads
    ]
    if trace is not None:
        # But for where within 3 s a request comes, the trace is the same whatever the seed.
        requests = 0 if scale >= 1 else max(20, round(5000 * scale))
        made.append(
            Case(f"mooncake:{trace}", 1.0, requests, "mooncake", seeds=SEEDS[:1], chosen=True)
        )
    return made + [
        msgspec.structs.replace(each, requests=max(20, round(each.requests * scale)))
        for each in (*_LONG, *_ANOTHER, *_UNEVEN)
    ]
