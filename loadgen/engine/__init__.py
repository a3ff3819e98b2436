"""A simulated vLLM engine: pure, driven by whoever has a clock."""

from loadgen.engine.engine import Engine
from loadgen.engine.outcome import CacheObserver, Counters, StepResult
from loadgen.engine.params import EngineParams
from loadgen.engine.presets import PRESETS, preset
from loadgen.engine.request import Request, Stage
from loadgen.engine.transfer import OFFLOAD_GB_PER_S, Link, Transfer, offloading, transfer_for

__all__ = [
    "OFFLOAD_GB_PER_S",
    "PRESETS",
    "CacheObserver",
    "Counters",
    "Engine",
    "EngineParams",
    "Link",
    "Request",
    "Stage",
    "StepResult",
    "Transfer",
    "offloading",
    "preset",
    "transfer_for",
]
