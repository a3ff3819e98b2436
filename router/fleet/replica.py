"""One replica, as the gateway knows it: an engine endpoint, or one data-parallel rank of it.

Behind one port there may be several engines, each with a KV cache, a queue and a load of its own.
Each is a replica with a slot of its own: what is chosen among, what the index knows a cache of.
They share what belongs to the port: address, health, breaker, models. The first of them is the one
that is watched, and goes by the port's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from router.config.address import Address
from router.fleet.breaker import Breaker
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.engines import UNKNOWN, EngineKind
from router.fleet.external_load import ExternalLoad
from router.fleet.health import Health, HealthState
from router.types import Load, Role


@dataclass(slots=True)
class Faults:
    """Requests that failed on a replica, by reason."""

    connect: int = 0
    """No connection could be made: refused, unreachable, or its name is unknown."""
    timeout: int = 0
    """No connection was made in time."""
    silent: int = 0
    """Connected, but nothing came for too long."""
    died: int = 0
    """The connection broke before the answer was complete."""
    status: int = 0
    """A 5xx status, or an error event in a stream."""
    engine: int = 0
    """The server reported that the engine behind it is dead."""


@dataclass(slots=True, eq=False)
class Replica:
    """A member of the fleet. Everything that changes is changed by the fleet, on the event loop."""

    slot: int
    address: Address
    load: Load
    """The same object as the fleet's loads[slot]."""
    breaker: Breaker
    health: Health
    kv_tokens: int
    """Size of the KV cache in GPU memory: as set, as read from the engine, or a guess."""
    kv_tokens_known: bool
    offload_tokens: int = 0
    """Tokens that a tier behind the KV cache holds: as set, or as read from the engine."""
    block_tokens: int = 16
    """Tokens of a KV cache block: vLLM's usual size until the engine's metrics tell."""
    url: str = ""
    name: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""
    host_header: bytes = b""
    bit: int = 0
    ranks: list[Replica] = field(default_factory=list)
    """All ranks of its endpoint, in order and itself included; they share this one list."""
    rank: int = 0
    """Its position in `ranks`."""
    rank_header: bytes = b""
    """What tells the endpoint which of several engines a request is for: a whole line."""
    bits: int = 0
    """The slot bits of all ranks of its endpoint."""
    models: tuple[str, ...] = ()
    """The names it serves, adapters included; see models_read and any_model."""
    models_read: bool = False
    models_given: bool = False
    """Discovery or a file said what it serves, so /v1/models is not asked."""
    any_model: bool = False
    """It refused to list its models, so it is taken to serve every model."""
    draining: bool = False
    asleep: bool = False
    """The engine sleeps, by its metrics or /is_sleeping."""
    paused: bool = False
    """The engine's scheduler is paused, by /is_paused."""
    by_discovery: bool = False
    """Discovery added it and will remove it."""
    role: Role = "decode"
    """Set by the fleet's set_role."""
    faults: Faults = field(default_factory=Faults)
    kind: EngineKind = UNKNOWN
    """Which engine it is, by its models or its metrics."""
    reports_cached: bool = False
    """Its answers tell cached tokens: one has."""
    engine: EngineMetrics | None = None
    """The last metrics read, None before the first and after a restart; see engine_at."""
    engine_at: float = 0.0
    engine_missing: str = ""
    """Why there are no engine metrics; empty when there are, or when it was not tried yet."""
    external: ExternalLoad = field(default_factory=ExternalLoad)
    restarts: int = 0
    """The number of restarts seen. After each, its cache was taken to be empty."""
    tried: bool = False
    """Whether its first round of reads is over, successful or not."""

    def __post_init__(self) -> None:
        address = self.address
        self.url = address.url
        self.name = address.name
        self.host = address.host
        self.port = address.port
        self.tls = address.tls
        self.prefix = address.prefix
        self.host_header = address.authority.encode("ascii")
        self.bit = self.bits = 1 << self.slot
        if not self.ranks:
            self.ranks.append(self)
        if self.rank:
            self.name += f"@{self.rank}"

    @property
    def remembered_tokens(self) -> int:
        """Tokens of prompts that it may still have, in GPU memory or in a tier behind it."""
        return self.kv_tokens + self.offload_tokens

    @property
    def state(self) -> str:
        """starting, ready, unhealthy, draining, sleeping or paused."""
        if self.draining:
            return "draining"
        if self.resting and self.health.state is HealthState.READY:
            return "sleeping" if self.asleep else "paused"
        return self.health.state

    @property
    def resting(self) -> bool:
        """Whether it holds requests back, well but asleep or paused."""
        return self.asleep or self.paused
