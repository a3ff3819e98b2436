"""Lengths with times: what production traces publish instead of texts.

Mooncake's traces (timestamps in whole milliseconds, hash_ids of 512 tokens), the same without
hash_ids, vLLM's timed_trace and Alibaba's traces (seconds, hash_ids of 16 tokens), guidellm's
(seconds, no hash_ids) and aiperf's (sessions, delays in milliseconds) have the same fields, so
units and block sizes are found out: a block is the smallest power of two from 16 on that lets the
hash_ids cover the lengths; times are milliseconds where blocks are larger than 16 tokens or where
there are none and all times are whole numbers, else seconds. Dates, and numbers that count from
1970, tell their unit themselves. A setting says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.traces.format import JSON, Format
from loadgen.workloads.traces.recorded import (
    Length,
    PromptLength,
    Reading,
    Recorded,
    Recording,
    seconds_of,
)
from loadgen.workloads.traces.source import Source

_SAMPLE = 2000
_EPOCH = 1e9
"""A trace's own clock does not begin so late: these are seconds since 1970, or more digits."""


class Line(msgspec.Struct):
    """One request."""

    input_length: PromptLength
    output_length: Length = 0
    timestamp: float | str | None = None
    delay: float | None = None
    """Milliseconds after the request of its session before it."""
    hash_ids: list[int | str] | None = None
    session_id: str | None = None


class Layout(msgspec.Struct, frozen=True):
    """What a file's numbers mean."""

    unit: str
    """auto where the times tell it."""
    block_tokens: int


def layout(source: Source, reading: Reading) -> Layout:
    """Found out from the first lines."""
    blocks = 16
    whole = True
    hashed = False
    dated = False
    for number, (_, line) in enumerate(source.records(Line)):
        if number >= _SAMPLE:
            break
        if line.timestamp is not None:
            try:
                time = float(line.timestamp)
            except ValueError:
                dated = True
            else:
                dated |= time >= _EPOCH
                whole &= time.is_integer()
        if line.hash_ids:
            hashed = True
            while blocks * len(line.hash_ids) < line.input_length:
                blocks *= 2
    unit = reading.unit
    if unit == "auto" and not dated:
        unit = "ms" if (blocks > 16 if hashed else whole) else "s"
    return Layout(unit, reading.block_tokens or (blocks if hashed else 0))


def read(source: Source, reading: Reading) -> Iterator[Recording]:
    """A line with a time is a session of its own; those of one session_id that have delays
    instead are steps of one."""
    found = layout(source, reading)
    waiting: dict[str, list[Recorded]] = {}
    for number, line in source.records(Line):
        blocks = tuple(line.hash_ids or ())
        if blocks and len(blocks) * found.block_tokens < line.input_length:
            raise source.wrong(
                number,
                f"{len(blocks)} hash_ids of {found.block_tokens} tokens do not cover input_length "
                f"{line.input_length}; say how long a block is with --set block_tokens=N",
            )
        try:
            at = seconds_of(line.timestamp or 0.0, found.unit)
        except ValueError as error:
            raise source.wrong(number, f"timestamp: {error}") from error
        one = Recorded(
            at=at,
            pause=(line.delay or 0.0) / 1e3,
            prompt_tokens=line.input_length,
            output_tokens=line.output_length,
            blocks=blocks,
            block_tokens=found.block_tokens,
            session=line.session_id or "",
        )
        steps = waiting.get(one.session) if one.session else None
        if steps is not None and line.timestamp is None:
            steps.append(one)
        elif one.session:
            if steps is not None:
                yield tuple(steps)
            waiting[one.session] = [one]
        else:
            yield (one,)
    yield from (tuple(steps) for steps in waiting.values())


LENGTHS = Format(
    name="lengths",
    title="lengths with times or hash_ids (Mooncake, vLLM timed_trace, guidellm, aiperf)",
    kinds=JSON,
    needs=(("input_length",), ("timestamp", "hash_ids", "output_length")),
    read=read,
    times=("timestamp",),
)
