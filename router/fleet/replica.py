"""One engine endpoint, as the gateway knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from router.fleet.breaker import Breaker
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.external_load import Foreign
from router.fleet.health import Health
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
    died: int = 0
    """The connection broke before the answer was complete."""
    status: int = 0
    """5xx."""


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
    """KV cache size: as set, as read from the engine, or a guess."""
    kv_tokens_known: bool
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
    models: tuple[str, ...] = ()
    """Names served, adapters included; see models_read and any_model."""
    models_read: bool = False
    models_given: bool = False
    """Whoever found it said what it serves: /v1/models is not asked."""
    any_model: bool = False
    """It would not tell its models, so it is taken to serve every one."""
    draining: bool = False
    faults: Faults = field(default_factory=Faults)
    engine: EngineMetrics | None = None
    """The last metrics read, None before the first and after a restart; see engine_at."""
    engine_at: float = 0.0
    engine_missing: str = ""
    """Why there are no engine metrics; empty when there are, or when it was not tried yet."""
    foreign: Foreign = field(default_factory=Foreign)
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
        self.bit = 1 << self.slot

    @property
    def state(self) -> str:
        """starting, ready, unhealthy or draining."""
        return "draining" if self.draining else self.health.state
