"""Workloads read from files: a published trace, or the gateway's own request log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, TypeAlias

import msgspec
import xxhash

from loadgen.workloads.draw import rng
from loadgen.workloads.traces.formats.lengths import layout
from loadgen.workloads.traces.recognise import open_source
from loadgen.workloads.traces.recorded import Length, PromptLength, Reading, TraceError
from loadgen.workloads.traces.rows import HUB
from loadgen.workloads.traces.source import Source
from loadgen.workloads.types import Prompt, Role, Segment, Session, Step, Workload
from router.prompt.spans import SPANS

MOONCAKE_BLOCK = 512
MOONCAKE_STEP = 3000.0
"""Milliseconds between the time stamps there are."""
_NotNegative: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class MooncakeLine(msgspec.Struct):
    """A line of the traces that Mooncake (kvcache-ai/Mooncake, FAST '25) published."""

    timestamp: _Time
    """Milliseconds from the start; no line has an earlier one than the line before it."""
    input_length: PromptLength
    output_length: Length
    hash_ids: list[int | str]
    """One for each block of 512 tokens; equal leading ids are a shared prefix."""


def _segment_id(salt: str, number: int | str) -> int:
    return xxhash.xxh3_64_intdigest(f"{salt}/{number}".encode()) >> 1


class LogLine(msgspec.Struct):
    """What is read of a line of the gateway's access log."""

    time: _Time
    """Seconds since 1970."""
    prompt_tokens: Length = 0
    output_tokens: Length = 0
    prompt_bytes: Length = 0
    blocks: list[int] | None = None
    """One for each full block of canonical prompt bytes (router.prompt.spans), naming all to it."""


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's access log, written with access_log_blocks on.

    Each line is a session of one request at its own time, and shares with the others what the
    blocks say. Lines without blocks are left out."""

    path: str
    name: str = "replay"

    @property
    def timed(self) -> bool:
        return True

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:  # noqa: ARG002
        lines = sorted(
            (
                line
                for _, line in Source(Path(self.path)).records(LogLine)
                if line.blocks is not None and line.prompt_bytes > 0
            ),
            key=lambda line: line.time,
        )
        if not lines:
            raise TraceError(
                f"{self.path} has no line with blocks: start the gateway with "
                "--access-log-blocks true"
            )
        told = [line for line in lines if line.prompt_tokens]
        # One share for all: a block's length must be the same in every prompt that has it.
        share = sum(line.prompt_tokens for line in told) / max(
            1, sum(line.prompt_bytes for line in told)
        )
        for number, line in enumerate(lines):
            output = Segment(
                _segment_id("answer", number), max(1, line.output_tokens), Role.ASSISTANT
            )
            step = Step(self._prompt(line, number, share or 0.25), output)
            yield Session(number, (step,), line.time - lines[0].time)

    def _prompt(self, line: LogLine, number: int, share: float) -> Prompt:
        """Blocks as segments of so many tokens a byte; what is left of the prompt is its own."""
        blocks = line.blocks or []
        left = line.prompt_tokens or max(1, round(line.prompt_bytes * share))
        prompt = []
        for place, block in enumerate(blocks):
            size = round(SPANS[place + 1] * share) - round(SPANS[place] * share)
            size = min(size, left)
            if size > 0:
                prompt.append(Segment(_segment_id("block", block), size))
                left -= size
        if left > 0:
            prompt.append(Segment(_segment_id("rest", number), left))
        return tuple(prompt)


class Mooncake(msgspec.Struct, frozen=True, kw_only=True):
    """Each line is a session of one request, at its own time.

    The published traces round times down to whole steps of 3 s, so that dozens of requests seem to
    come at the very same moment. Unless `raw` is given, the lines of one time stamp are spread at
    random over the time to the next one, in their order; a line alone keeps its own."""

    path: str
    name: str = "mooncake"
    raw: bool = False
    """Keep the time stamps as they are."""
    most_tokens: _NotNegative = 0
    """Leave out prompts longer than this; 0 keeps all."""

    @property
    def timed(self) -> bool:
        return True

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        sent = 0
        for number, at, line in self._timed(seed):
            if self.most_tokens and line.input_length > self.most_tokens:
                continue
            output = Segment(
                _segment_id("answer", number - 1), max(1, line.output_length), Role.ASSISTANT
            )
            step = Step(self._prompt(line, number), output)
            yield Session(number - 1, (step,), at / 1e3)
            sent += 1
        if not sent:
            left = f" of at most {self.most_tokens} tokens" if self.most_tokens else ""
            raise TraceError(f"{self.path} has no request{left}: nothing to play")

    def _timed(self, seed: int) -> Iterator[tuple[int, float, MooncakeLine]]:
        """(number, milliseconds from the start, line) of every line."""
        random = rng(seed, self.name)
        bucket: list[tuple[int, MooncakeLine]] = []
        start = 0.0
        width = MOONCAKE_STEP
        for number, line in Source(Path(self.path)).records(MooncakeLine):
            if line.timestamp < start:
                raise TraceError(
                    f"{self.path} line {number}: timestamp {line.timestamp:g} comes after "
                    f"{start:g}: sort the lines by timestamp"
                )
            if line.timestamp > start:
                width = min(line.timestamp - start, MOONCAKE_STEP)
                yield from self._spread(random, start, width, bucket)
                bucket.clear()
                start = line.timestamp
            bucket.append((number, line))
        # Nothing tells how long the last step was: as long as the one before.
        yield from self._spread(random, start, width, bucket)

    def _spread(
        self, random: Random, start: float, width: float, bucket: list[tuple[int, MooncakeLine]]
    ) -> Iterator[tuple[int, float, MooncakeLine]]:
        offsets = [0.0] * len(bucket)
        if not self.raw and len(bucket) > 1:
            offsets = sorted(random.random() * width for _ in bucket)
        for (number, line), offset in zip(bucket, offsets, strict=True):
            yield number, start + offset, line

    def _prompt(self, line: MooncakeLine, number: int) -> Prompt:
        left = line.input_length
        prompt: list[Segment] = []
        for block in line.hash_ids:
            if left <= 0:
                break
            size = min(left, MOONCAKE_BLOCK)
            prompt.append(Segment(_segment_id("mooncake", block), size))
            left -= size
        if left > 0:
            raise TraceError(
                f"{self.path} line {number}: {len(line.hash_ids)} hash_ids of {MOONCAKE_BLOCK} "
                f"tokens do not cover input_length {line.input_length}"
            )
        return tuple(prompt)


def of_known_log(path: str) -> Workload | None:
    """A gateway's access log or a trace as Mooncake publishes them; None for any other file.
    Raises TraceError for an access log without blocks."""
    if path.startswith(HUB) or Path(path).is_dir():
        return None
    source = open_source(Path(path))
    first = source.first[0] if source.kind == "jsonl" and source.first else {}
    if {"time", "api", "outcome"} <= set(first):
        if not any("blocks" in record for record in source.first):
            raise TraceError(
                f"{path} is an access log without blocks: start the gateway with "
                "--access-log-blocks true"
            )
        return Replay(path=path)
    mooncake = {"timestamp", "input_length", "output_length", "hash_ids"}
    if mooncake <= set(first) and not {"session_id", "delay"} & set(first):
        found = layout(source, Reading())
        if found.unit == "ms" and found.block_tokens == MOONCAKE_BLOCK:
            return Mooncake(path=path)
    return None
