"""Tells whether an engine restarted since its last reading, which means an empty KV cache."""

from __future__ import annotations

from router.fleet.engine_metrics import EngineMetrics

SAME_START_S = 1.0
"""Seconds by which two readings of one start time may differ: some exporters round it."""


def restarted(before: EngineMetrics | None, after: EngineMetrics | None, was_refused: bool) -> str:
    """The reason to believe that it restarted; empty when it has not.

    Two start times settle it; without them, counters that went down do. With neither, was_refused
    (nothing accepted connections in between) has to do.
    """
    if before is not None and after is not None:
        if before.started is not None and after.started is not None:
            if abs(after.started - before.started) > SAME_START_S:
                return "its process has another start time"
            was_refused = False
        if _fell(before.queries, after.queries) or _fell(before.prompts, after.prompts):
            return "its counters began anew"
    return "it refused connections" if was_refused else ""


def _fell(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after < before
