"""Block hashes of a prompt, from its segments."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from loadgen.workloads.types import Segment

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def chain_at(segments: Sequence[Segment], ends: npt.NDArray[np.int64]) -> array[int]:
    """Hashes of the blocks that end at the given token positions (ascending), typecode 'Q'.

    A block's hash covers everything before it, as prefix caches want: two prompts agree on a block
    exactly when they agree on all tokens up to its end. Blocks that end beyond the prompt are
    absent.

    Since different ids differ from their first token, what lies up to an end is named by the
    segments before the one that holds the block's last token, that segment's id (not its length: a
    longer segment starts with a shorter one's text) and the position. Positions are mixed in by
    splitmix64's finaliser.
    """
    hashes = array("Q")
    if not segments:
        return hashes
    path = b"warmroute"
    seeds = []
    for segment in segments:
        named = path + segment.id.to_bytes(8, "little")
        seeds.append(xxhash.xxh3_64_intdigest(named))
        path = xxhash.xxh3_64_digest(named + segment.tokens.to_bytes(8, "little"))
    stops = np.cumsum([segment.tokens for segment in segments])
    lasts = np.searchsorted(ends, stops, side="right")
    seeded = np.repeat(np.array(seeds, dtype=np.uint64), np.diff(lasts, prepend=0))
    mixed = ends[: lasts[-1]].astype(np.uint64) * _GOLDEN + seeded
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    hashes.frombytes((mixed ^ (mixed >> np.uint64(31))).tobytes())
    return hashes


def chain(segments: Sequence[Segment], block_tokens: int) -> array[int]:
    """Hashes of the prompt's full blocks of equal size, as vLLM cuts them."""
    total = sum(segment.tokens for segment in segments)
    ends = np.arange(block_tokens, total + 1, block_tokens, dtype=np.int64)
    return chain_at(segments, ends)
