"""Where blocks of canonical prompt bytes start and end.

Block k covers ``SPANS[k]`` up to ``SPANS[k + 1]``. Blocks grow with depth, since what counts is how
far a match is off relative to what it found: an early block is small because short prompts are all
there is to match there, a late one is large because it costs time and memory.
``docs/design/prompt.md`` has the measurement the numbers come from.
"""

from __future__ import annotations

from typing import Final

FIRST_BLOCK: Final = 256
"""Bytes of each block at the start of a prompt."""

LARGEST_BLOCK: Final = 2048
"""The most bytes of a block."""

GROWTH: Final = 32
"""A block is about this part of the bytes before it: a match ends at most about 1/32 too early."""

LONGEST_PROMPT: Final = 64 << 20
"""The most bytes of a prompt that blocks cover. What lies beyond has no blocks."""


def spans(
    first: int = FIRST_BLOCK,
    largest: int = LARGEST_BLOCK,
    growth: int = GROWTH,
    longest: int = LONGEST_PROMPT,
) -> tuple[int, ...]:
    """Block boundaries from 0 to at least ``longest``, all in bytes. Sizes are multiples of 64."""
    bounds = [0]
    at = 0
    while at < longest:
        at += min(largest, max(first, at // growth // 64 * 64))
        bounds.append(at)
    return tuple(bounds)


SPANS: Final[tuple[int, ...]] = spans()
"""The byte offset at which each block starts. A chain of n blocks covers ``SPANS[n]`` bytes."""
