"""Canonical bytes → the chain of block hashes that names every prefix of them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from functools import lru_cache
from itertools import pairwise
from typing import Final

import xxhash

from router.prompt.canonical import dump
from router.prompt.spans import SPANS
from router.types import Chain

# Made once: a slice object costs more than the index it saves, and all chains share these.
_SLICES: Final = tuple(slice(start, end) for start, end in pairwise(SPANS))


def chain(text: bytes, seed: int) -> Chain:
    """Hash each full block (XXH3, 64 bits), each with the hash before it as its seed."""
    xxh3 = xxhash.xxh3_64_intdigest
    h = seed
    return array(
        "Q", [h := xxh3(text[s], h) for s in _SLICES[: bisect_right(SPANS, len(text)) - 1]]
    )


def seed(api: str, model: str, arguments: list[tuple[bytes, bytes]]) -> int:
    """What no two prompts of other heads share: API, model, and the template arguments given."""
    if not arguments:
        return plain_seed(api, model)
    pieces = [api.encode(), b"\x00", dump(model)]
    for name, canonical in arguments:
        pieces += (b"\x00", name, b"\x01", canonical)
    made: int = xxhash.xxh3_64_intdigest(b"".join(pieces))
    return made


@lru_cache(maxsize=4096)
def plain_seed(api: str, model: str) -> int:
    """The seed of a prompt that has nothing but a model in its head."""
    made: int = xxhash.xxh3_64_intdigest(b"\x00".join((api.encode(), dump(model))))
    return made
