"""Workloads read from files: a published trace, or the gateway's own request log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import msgspec
import xxhash

from loadgen.workloads.types import Prompt, Role, Segment, Session, Step, Tokens
from router.prompt.spans import SPANS

MOONCAKE_BLOCK = 512
_Line = TypeVar("_Line")
_NotNegative: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Time: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]


class TraceError(ValueError):
    """A trace that cannot be read; names the file and the line."""


class MooncakeLine(msgspec.Struct):
    """A line of the traces that Mooncake (kvcache-ai/Mooncake, FAST '25) published."""

    timestamp: _Time
    """Milliseconds from the start; no line has an earlier one than the line before it."""
    input_length: Tokens
    output_length: _NotNegative
    hash_ids: list[int]
    """One for each block of 512 tokens; equal leading ids are a shared prefix."""


def _lines(path: str, kind: type[_Line]) -> Iterator[tuple[int, _Line]]:
    """(number from 1, line) of every line that is not blank. Raises TraceError and OSError."""
    decoder = msgspec.json.Decoder(kind)
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.isspace():
                continue
            try:
                yield number, decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise TraceError(f"{path} line {number}: {error}") from error


def _segment_id(salt: str, number: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{salt}/{number}".encode()) >> 1


class LogLine(msgspec.Struct):
    """What is read of a line of the gateway's access log."""

    time: _Time
    """Seconds since 1970."""
    prompt_tokens: _NotNegative = 0
    output_tokens: _NotNegative = 0
    prompt_bytes: _NotNegative = 0
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
                for _, line in _lines(self.path, LogLine)
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
    """Each line is a session of one request, at its own time. The seed changes nothing."""

    path: str
    name: str = "mooncake"
    most_tokens: _NotNegative = 0
    """Leave out prompts longer than this; 0 keeps all."""

    @property
    def timed(self) -> bool:
        return True

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:  # noqa: ARG002
        before = 0.0
        sent = 0
        for number, line in _lines(self.path, MooncakeLine):
            if line.timestamp < before:
                raise TraceError(
                    f"{self.path} line {number}: timestamp {line.timestamp:g} comes after "
                    f"{before:g}: sort the lines by timestamp"
                )
            before = line.timestamp
            if self.most_tokens and line.input_length > self.most_tokens:
                continue
            output = Segment(
                _segment_id("answer", number - 1), max(1, line.output_length), Role.ASSISTANT
            )
            step = Step(self._prompt(line, number), output)
            yield Session(number - 1, (step,), line.timestamp / 1e3)
            sent += 1
        if not sent:
            left = f" of at most {self.most_tokens} tokens" if self.most_tokens else ""
            raise TraceError(f"{self.path} has no request{left}: nothing to play")

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
