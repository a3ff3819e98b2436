"""Token ids of texts seen before, bounded in bytes."""

from __future__ import annotations

import secrets

import xxhash

from router.memory import RecentMemory


def new_seed() -> int:
    """A seed that nobody can guess, so that nobody can make two texts with the same key."""
    return secrets.randbits(64)


ENTRY_BYTES = 33 + 49 + 33 + 5
"""What an entry takes beside the ids: the ids' object, the key's, its place in the table."""


def key_of(text: str, seed: int) -> bytes:
    """The key of a text. The seed separates the texts of two tokenizers."""
    digest: bytes = xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"), seed)
    return digest


class TokenMemory(RecentMemory[bytes, bytes]):
    """Token ids (32 bits each), found by their text's key."""

    __slots__ = ()

    def __init__(self, limit: int) -> None:
        """`limit` is in bytes."""
        super().__init__(limit, _entry_bytes)

    @property
    def tokens(self) -> int:
        """The number of token ids that are remembered."""
        return (self.nbytes - len(self) * ENTRY_BYTES) // 4


def _entry_bytes(_: bytes, tokens: bytes) -> int:
    return len(tokens) + ENTRY_BYTES
