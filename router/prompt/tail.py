"""The end of a prompt behind its last full block: with the chain, it names the whole prompt."""

from __future__ import annotations

import xxhash

from router.prompt.spans import SPANS


def tail(text: bytes, blocks: int) -> tuple[int, int]:
    """(length, hash) of the canonical bytes behind the last of the full blocks."""
    rest = text[SPANS[blocks] :]
    return len(rest), xxhash.xxh3_64_intdigest(rest)


def digest(text: bytes, blocks: int, length: int) -> int:
    """Hash of so many canonical bytes behind the first blocks; -1 where there are not as many."""
    start = SPANS[blocks]
    end = start + length
    if end > len(text):
        return -1
    hashed: int = xxhash.xxh3_64_intdigest(text[start:end])
    return hashed
