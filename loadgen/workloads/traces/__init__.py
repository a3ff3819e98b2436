"""Traces, prompts and logs of many formats as workloads."""

from __future__ import annotations

from collections.abc import Mapping

from loadgen.workloads.traces.recognise import recognised
from loadgen.workloads.traces.recorded import TraceError
from loadgen.workloads.traces.rows import HUB
from loadgen.workloads.traces.workload import Trace

__all__ = ["HUB", "Trace", "TraceError", "open_trace"]


def open_trace(path: str, columns: Mapping[str, str]) -> Trace:
    """By looking at it. Raises TraceError, ValueError for columns that make no sense, OSError."""
    form, source = recognised(path, columns)
    return Trace(path=path, name=form.name, has_times=form.timed(source), columns=dict(columns))
