"""The engines that replicas may be, one file for each, and which one a replica is.

To add an engine, describe it in a file of its own and list it in `ENGINES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from router.fleet.engines.kind import EngineKind
from router.fleet.engines.sglang import SGLANG
from router.fleet.engines.trtllm import TRTLLM
from router.fleet.engines.vllm import UNKNOWN, VLLM

__all__ = ["ENGINES", "NAMES", "UNKNOWN", "EngineKind", "kind_by_metrics", "kind_by_owners"]

ENGINES: Final = (VLLM, SGLANG, TRTLLM)
NAMES: Final = "vLLM, SGLang or TensorRT-LLM"


def kind_by_owners(owners: Iterable[object]) -> EngineKind | None:
    """The engine that names itself as the owner of a model in /v1/models; None where none does."""
    for owner in owners:
        for kind in ENGINES:
            if owner == kind.owner:
                return kind
    return None


def kind_by_metrics(text: bytes) -> EngineKind | None:
    """The engine whose metrics a text in Prometheus' format has; None where it has none's."""
    text = b"\n" + text
    for kind in ENGINES:
        if b"\n" + kind.metrics_prefix in text:
            return kind
    return None
