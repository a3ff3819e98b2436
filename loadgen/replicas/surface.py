"""What of a replica's HTTP surface differs from engine to engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadgen.replicas.routes import GENERATING, ROUTES, GeneratingRoute, Route

BILLING = "x-anthropic-billing-header"
"""The start of a line that Claude Code puts first into the system prompt, and changes each time."""


def _unchanged(path: str, body: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Surface:
    """One engine's surface. The engine behind it is the same model for all."""

    name: str
    origin: str
    """What it follows, for the command's help."""
    routes: Mapping[str, Route]
    generating: Mapping[str, GeneratingRoute]
    prepare: Callable[[str, dict[str, Any]], None] = _unchanged
    """Changes a body of a path that generates in place, as far as the engine does not read it."""
    health_seconds: float = 0.0
    """Seconds of the wall clock that a good answer to /health takes."""
    object_errors: bool = False
    """Errors are one flat object, not OpenAI's `{"error": ...}`."""


def without_billing(path: str, body: dict[str, Any]) -> None:
    """vLLM drops the billing line of /v1/messages."""
    system = body.get("system")
    if path != "/v1/messages" or not system:
        return
    if isinstance(system, str):
        if system.startswith(BILLING):
            body["system"] = system.partition("\n")[2]
    elif isinstance(system, list):
        body["system"] = [
            part
            for part in system
            if not (isinstance(part, dict) and str(part.get("text")).startswith(BILLING))
        ]


VLLM = Surface(
    name="vllm",
    origin="compared with a vLLM 0.32",
    routes=ROUTES,
    generating=GENERATING,
    prepare=without_billing,
)
