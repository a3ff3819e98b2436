"""Token ids of texts seen before, bounded in bytes."""

from __future__ import annotations

import secrets

import xxhash


def new_seed() -> int:
    """One that nobody can guess, so that nobody can make two texts that look the same."""
    return secrets.randbits(64)


ENTRY_BYTES = 33 + 49 + 33 + 5
"""What an entry takes beside the ids: the ids' object, the key's, its place in the table."""


def key_of(text: str, seed: int) -> bytes:
    """What a text is remembered by; the seed keeps the texts of two tokenizers apart."""
    digest: bytes = xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"), seed)
    return digest


class TokenMemory:
    """Two generations: what was used since the last turn, and what was not. When the first is half
    of the limit the second is dropped, which keeps what is in use without an order to maintain.
    """

    __slots__ = ("_limit", "_new", "_old", "_old_size", "_old_tokens", "_size", "_tokens")

    def __init__(self, limit: int) -> None:
        """limit: bytes."""
        self._limit = limit // 2
        self._new: dict[bytes, bytes] = {}
        self._old: dict[bytes, bytes] = {}
        self._size = self._old_size = 0
        self._tokens = self._old_tokens = 0

    def get(self, key: bytes) -> bytes | None:
        """Token ids (32 bits each), or None."""
        found = self._new.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self._old_size -= len(found) + ENTRY_BYTES
                self._old_tokens -= len(found) // 4
                self.put(key, found)
        return found

    def put(self, key: bytes, tokens: bytes) -> None:
        """Remember; what is larger than the half of the memory is not."""
        size = len(tokens) + ENTRY_BYTES
        if key in self._new or size > self._limit:
            return
        if self._size + size > self._limit:
            self._old, self._old_size, self._old_tokens = self._new, self._size, self._tokens
            self._new, self._size, self._tokens = {}, 0, 0
        self._new[key] = tokens
        self._size += size
        self._tokens += len(tokens) // 4

    @property
    def nbytes(self) -> int:
        """Bytes in use, estimated."""
        return self._size + self._old_size

    @property
    def tokens(self) -> int:
        """Tokens remembered."""
        return self._tokens + self._old_tokens
