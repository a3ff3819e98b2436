"""A simulated vLLM engine: pure, driven by whoever has a clock."""

from loadgen.engine.engine import Engine
from loadgen.engine.outcome import CacheObserver, Counters, StepResult
from loadgen.engine.params import EngineParams
from loadgen.engine.presets import PRESETS, preset
from loadgen.engine.request import Request, Stage

__all__ = [
    "PRESETS",
    "CacheObserver",
    "Counters",
    "Engine",
    "EngineParams",
    "Request",
    "Stage",
    "StepResult",
    "preset",
]
