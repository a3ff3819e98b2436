"""The router's own names for token blocks.

An engine names its blocks as it likes: integers or bytes, by any hash, salted with a seed of its
own. The router hashes what a block is made of: the block before it, its token ids, and what else
keeps prompts apart. So a prompt tokenised here finds an engine's blocks whatever the engine calls
them, and replicas with other hash settings share names.
"""

from __future__ import annotations

from array import array
from functools import lru_cache

import xxhash

from router.types import Chain

TOKEN_BYTES = 4
"""Token ids are 32-bit integers, typecode 'I', in the machine's byte order."""


@lru_cache(maxsize=65_536)
def seed(adapter: str, salt: str) -> int:
    """The value that the first block's hash starts from; never 0."""
    made: int = xxhash.xxh3_64_intdigest(
        b"\x00".join((b"tokens", adapter.encode(), salt.encode("utf-8", "surrogatepass")))
    )
    return made or 1


def chain(tokens: bytes | memoryview, block: int, parent: int) -> Chain:
    """Hash each full block of token ids, each with the hash before it as its seed."""
    width = block * TOKEN_BYTES
    view = memoryview(tokens)
    xxh3 = xxhash.xxh3_64_intdigest
    h = parent
    return array(
        "Q", [h := xxh3(view[at : at + width], h) for at in range(0, len(view) - width + 1, width)]
    )
