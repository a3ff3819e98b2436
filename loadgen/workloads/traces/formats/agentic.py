"""Lengths of coding agents with their block hashes, sub-agents and pauses: the traces that
kv-cache-tester records and aiperf and guidellm replay (Weka's format)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording
from loadgen.workloads.traces.segments import named
from loadgen.workloads.traces.source import Source


class Request(msgspec.Struct):
    """One call, or a sub-agent with calls of its own; seconds."""

    t: float = 0.0
    type: str = "n"
    input_length: Length = msgspec.field(name="in", default=0)
    output_length: Length = msgspec.field(name="out", default=0)
    hash_ids: list[int] = []
    think_time: float | None = None
    requests: list[Request] = []


class Line(msgspec.Struct):
    """One session."""

    id: str
    block_size: int
    requests: list[Request]
    hash_id_scope: str = "local"


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A sub-agent starts after the call before it; the call after it waits for its last one."""
    for _, line in source.records(Line):
        steps: list[Recorded] = []
        waits: tuple[int, ...] = ()
        threads = 0
        for request in line.requests:
            if request.type != "subagent":
                if not request.input_length:
                    continue
                steps.append(_step(line, request, waits, 0))
                waits = (len(steps) - 1,)
                continue
            threads += 1
            own = waits
            for inner in request.requests:
                if not inner.input_length:
                    continue
                steps.append(_step(line, inner, own, threads))
                own = (len(steps) - 1,)
            waits = tuple(dict.fromkeys((*waits, *own)))
        if steps:
            yield tuple(steps)


def _step(line: Line, request: Request, waits: tuple[int, ...], thread: int) -> Recorded:
    local = line.hash_id_scope == "local"
    # Ids that mean something within one session only are made different in each.
    blocks = [named(f"{line.id}/{each}".encode()) if local else each for each in request.hash_ids]
    return Recorded(
        pause=request.think_time or 0.0,
        waits=waits,
        thread=thread,
        prompt_tokens=request.input_length,
        output_tokens=request.output_length,
        blocks=tuple(blocks),
        block_tokens=line.block_size,
    )


AGENTIC = Format(
    name="agentic",
    title="agentic traces with block hashes (kv-cache-tester, aiperf and guidellm weka)",
    kinds=("jsonl", "json list", "json object"),
    needs=(("requests",), ("block_size",), ("id",)),
    read=read,
)
