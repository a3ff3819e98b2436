"""The engines whose surface a replica can have, by name."""

from __future__ import annotations

from typing import Final

from loadgen.replicas.sglang import SGLANG
from loadgen.replicas.surface import VLLM, Surface
from loadgen.replicas.trtllm import TRTLLM

SURFACES: Final[dict[str, Surface]] = {each.name: each for each in (VLLM, SGLANG, TRTLLM)}


def surface_of(name: str) -> Surface:
    """Raises ValueError for a name that is none."""
    found = SURFACES.get(name)
    if found is None:
        raise ValueError(f"engine must be one of {', '.join(SURFACES)}, not {name!r}")
    return found
