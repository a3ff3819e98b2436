"""One replica, as the gateway knows it: an engine endpoint, or one data-parallel rank of it.

Behind one port there may be several engines, each with a KV cache, a queue and a load of its own.
Each is a replica with a slot of its own: what is chosen among, what the index knows a cache of.
They share what belongs to the port: address, health, breaker, models. The first of them is the one
that is watched, and goes by the port's name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from router.fleet.breaker import Breaker
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.external_load import ExternalLoad
from router.fleet.health import Health, HealthState
from router.types import Load


@dataclass(slots=True, frozen=True)
class Address:
    """A replica's URL, taken apart once."""

    url: str
    host: str
    """To connect to: no brackets around an IPv6 address."""
    port: int
    tls: bool
    prefix: str
    """Path put before every request's own; empty or "/x", never with a slash at its end."""
    authority: str
    """For the Host header: the port only when it is not the scheme's own."""

    @property
    def name(self) -> str:
        """Stable and unique: host, port, and prefix when there is one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}{self.prefix}"


def parse_address(url: str) -> Address:
    """Take a replica's base URL apart. Raises ValueError that names the URL and what to change."""
    if not url.isascii() or " " in url or not url.isprintable():
        raise ValueError(f"replica {url!r}: only printable ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        host, given_port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"replica {url!r}: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"replica {url!r}: write it with http:// or https:// in front")
    if not host:
        raise ValueError(f"replica {url!r}: no host; write it like http://10.0.0.1:8000")
    if "@" in parts.netloc:
        raise ValueError(f"replica {url!r}: credentials belong in replica_api_key, not in the URL")
    if parts.query or parts.fragment:
        raise ValueError(f"replica {url!r}: take away the part after the path")
    tls = parts.scheme == "https"
    usual = 443 if tls else 80
    port = usual if given_port is None else given_port
    if port == 0:
        raise ValueError(f"replica {url!r}: port 0 cannot be connected to")
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == usual else f"{shown}:{port}"
    prefix = parts.path.rstrip("/")
    return Address(
        url=f"{parts.scheme}://{authority}{prefix}",
        host=host,
        port=port,
        tls=tls,
        prefix=prefix,
        authority=authority,
    )


@dataclass(slots=True)
class Faults:
    """Requests that failed on a replica, by reason."""

    connect: int = 0
    """No connection: refused, unreachable, name unknown."""
    timeout: int = 0
    """No connection in time."""
    silent: int = 0
    """Connected, and then nothing for too long."""
    died: int = 0
    """The connection broke before the answer was complete."""
    status: int = 0
    """5xx, and errors that came as events."""
    engine: int = 0
    """Its server said that the engine behind it is dead."""


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
    """All of its endpoint, in order, itself among them: one list, shared by them."""
    rank: int = 0
    """Its place among them."""
    rank_header: bytes = b""
    """What tells the endpoint which of several engines a request is for: a whole line."""
    bits: int = 0
    """Those of all of them."""
    models: tuple[str, ...] = ()
    """Names served, adapters included; see models_read and any_model."""
    models_read: bool = False
    models_given: bool = False
    """Whoever found it said what it serves: /v1/models is not asked."""
    any_model: bool = False
    """It would not tell its models, so it is taken to serve every one."""
    draining: bool = False
    asleep: bool = False
    """The engine sleeps, as its metrics or /is_sleeping tell."""
    paused: bool = False
    """The engine's scheduler is paused, as /is_paused tells."""
    by_discovery: bool = False
    """Discovery let it in, and lets it go again."""
    faults: Faults = field(default_factory=Faults)
    engine: EngineMetrics | None = None
    """The last metrics read, None before the first and after a restart; see engine_at."""
    engine_at: float = 0.0
    engine_missing: str = ""
    """Why there are no engine metrics; empty when there are, or when it was not tried yet."""
    external: ExternalLoad = field(default_factory=ExternalLoad)
    restarts: int = 0
    """Restarts seen: its cache was taken to be empty."""
    tried: bool = False
    """Whether its first round of reads is over, well or not."""

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
        """Tokens of prompts that it can still have, in GPU memory or behind it."""
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
        """It is well, but keeps requests without an answer until it wakes or resumes."""
        return self.asleep or self.paused
