"""What the router has to know of an engine that others do in another way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from router.fleet.engine_metrics import EngineMetrics


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One engine's surface, and the flags that switch on what the router needs."""

    name: str
    """As /replicas has it; empty where the engine is not known."""
    title: str
    """As its makers write it, for people."""
    owner: str
    """`owned_by` of the models in its /v1/models."""
    metrics_prefix: bytes
    """What the names of its metrics begin with."""
    parse_metrics: Callable[[bytes], EngineMetrics]
    """Reads an answer to one of `metrics_paths`. A line that is not understood counts as not told;
    nothing raises."""
    metrics_paths: tuple[str, ...] = ("/metrics",)
    """Where its metrics are, the best first; the next one is asked where it is absent."""
    health_seconds: float = 0.0
    """Seconds that an engine which is well may take for its health, beside those of the network."""
    metrics_seconds: float = 0.0
    """The same for its metrics."""
    renders: bool = False
    """Its /tokenize renders chats with the model's template, which is how templates are probed."""
    exact: bool = False
    """Exact mode can follow its cache: its events name tokens, adapter and salt of each block, and
    the router renders prompts as it does."""
    drops_billing_line: bool = False
    """It leaves out the line of the system prompt that Claude Code changes with each request."""
    leaves_zero_out: bool = False
    """Where nothing was cached, its messages and responses APIs leave the field out."""
    paths: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """A path that the admin port calls -> the same here, where it has another name and takes
    the same body."""
    metrics_fix: str = ""
    """What switches on its metrics."""
    caching_fix: str = ""
    """What switches on its prefix cache."""
    usage_fix: str = ""
    """What lets its answers tell cached tokens."""
    salt_fix: str = ""
    """What makes it keep prompts with different salts apart."""
