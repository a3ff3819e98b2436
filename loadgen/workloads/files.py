"""Workloads read from files: a published trace, or the gateway's own request log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import xxhash

from loadgen.workloads.types import Role, Segment, Session, Step
from router.spans import SPANS

MOONCAKE_BLOCK = 512


class TraceError(ValueError):
    """A trace that cannot be read; names the file and the line."""


class MooncakeLine(msgspec.Struct):
    """A line of the traces that Mooncake (kvcache-ai/Mooncake, FAST '25) published."""

    timestamp: float
    """Milliseconds from the start."""
    input_length: int
    output_length: int
    hash_ids: list[int]
    """One for each block of 512 tokens; equal leading ids are a shared prefix."""


def _segment_id(salt: str, number: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{salt}/{number}".encode()) >> 1


class LogLine(msgspec.Struct):
    """What is read of a line of the gateway's access log."""

    time: float
    """Seconds since 1970."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_bytes: int = 0
    blocks: list[int] | None = None
    """One for each full block of canonical prompt bytes (router.spans), naming all up to it."""


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
        lines = sorted(self._lines(), key=lambda line: line.time)
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

    def _lines(self) -> Iterator[LogLine]:
        decoder = msgspec.json.Decoder(LogLine)
        with Path(self.path).open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    request = decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise TraceError(f"{self.path} line {number + 1}: {error}") from error
                if request.blocks is not None and request.prompt_bytes > 0:
                    yield request

    def _prompt(self, line: LogLine, number: int, share: float) -> tuple[Segment, ...]:
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
    most_tokens: int = 0
    """Leave out prompts longer than this; 0 keeps all."""

    @property
    def timed(self) -> bool:
        return True

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:  # noqa: ARG002
        decoder = msgspec.json.Decoder(MooncakeLine)
        with Path(self.path).open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    request = decoder.decode(line)
                except msgspec.MsgspecError as error:
                    raise TraceError(f"{self.path} line {number + 1}: {error}") from error
                if self.most_tokens and request.input_length > self.most_tokens:
                    continue
                left = request.input_length
                prompt: list[Segment] = []
                for block in request.hash_ids:
                    if left <= 0:
                        break
                    size = min(left, MOONCAKE_BLOCK)
                    prompt.append(Segment(_segment_id("mooncake", block), size))
                    left -= size
                if left > 0:
                    raise TraceError(
                        f"{self.path} line {number + 1}: {len(request.hash_ids)} hash_ids of "
                        f"{MOONCAKE_BLOCK} tokens do not cover input_length {request.input_length}"
                    )
                output = Segment(
                    _segment_id("answer", number), max(1, request.output_length), Role.ASSISTANT
                )
                yield Session(number, (Step(tuple(prompt), output),), request.timestamp / 1e3)
