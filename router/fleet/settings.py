"""What the fleet room needs to be told. The gateway's configuration fills it in."""

from __future__ import annotations

import msgspec


class FleetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in tokens."""

    replicas: tuple[str, ...] = ()
    """Base URLs, http or https, with an optional path prefix."""
    api_key: str = ""
    """Sent to replicas as a bearer token by the fleet's own reads (setting replica_api_key)."""
    verify: bool = True
    """Check the certificates of https replicas."""
    ca: str = ""
    """Path of a PEM file to check them against; empty for the system's."""
    kv_cache_tokens: int = 0
    """KV cache size of every replica; 0 reads it from the engine's metrics."""
    kv_offload_tokens: int = 0
    """Tokens that a tier behind every replica's GPU holds; 0 reads it from the engine's metrics."""
    kv_cache_guess: int = 500_000
    """Used until the size is known. Too high costs little, too low costs much."""
    prefill_rate: float = 20_000.0
    """Prompt tokens a second a replica prefills, until something better is known."""
    health_interval: float = 1.0
    health_timeout: float = 2.0
    unhealthy_after: int = 2
    """Probes failed in a row that take a replica out."""
    breaker_failures: int = 3
    """Failed requests in a row that open a replica's circuit breaker."""
    breaker_cooldown: float = 2.0
    """How long a breaker stays open the first time; doubles while trials fail."""
    slow_start: float = 10.0
    """How long a replica that is new or back takes to get its full share; 0 turns this off."""
    models: tuple[str, ...] = ()
    """Names of models that are expected, though no replica may serve them just now."""
    metrics_interval: float = 1.0
    models_interval: float = 10.0
