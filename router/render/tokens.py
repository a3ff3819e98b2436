"""A tokenised prompt, and the names of its blocks."""

from __future__ import annotations

from array import array

import xxhash

from router.kv_events.token_chain import TOKEN_BYTES, chain
from router.render.memory import TokenMemory
from router.types import Chain

PAGE = 4096
"""Tokens whose block hashes are remembered together."""


class ChainMemory:
    """Block hashes of prompts' beginnings. A page is found by its tokens and by the hash before it,
    which covers all that comes before."""

    def __init__(self, limit: int) -> None:
        """limit: bytes."""
        self._pages = TokenMemory(limit)

    def chain(self, tokens: bytes, block: int, seed: int) -> Chain:
        """The same as held.chain.chain."""
        width = max(PAGE // block, 1) * block * TOKEN_BYTES
        found: Chain = array("Q")
        view = memoryview(tokens)
        parent = seed
        start = 0
        pages = self._pages
        while len(view) - start >= width:
            page = view[start : start + width]
            key = xxhash.xxh3_128_digest(page, parent ^ block)
            known = pages.get(key)
            if known is None:
                known = chain(page, block, parent).tobytes()
                pages.put(key, known)
            found.frombytes(known)
            parent = found[-1]
            start += width
        found.extend(chain(view[start:], block, parent))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes in use, estimated."""
        return self._pages.nbytes


class TokenPrompt:
    """A prompt's token ids, 32 bits each, and its chain for each block size asked for."""

    __slots__ = ("_chains", "_memory", "_seed", "count", "salted", "tokens")

    def __init__(self, tokens: bytes, seed: int, salted: bool, memory: ChainMemory) -> None:
        """seed: what keeps its adapter and salt apart from others (held.chain.seed)."""
        self.tokens = tokens
        self.count = len(tokens) // TOKEN_BYTES
        self.salted = salted
        self._seed = seed
        self._memory = memory
        self._chains: dict[int, Chain] = {}

    def chain(self, block: int) -> Chain:
        """The hashes of its full blocks of so many tokens."""
        made = self._chains.get(block)
        if made is None:
            made = self._chains[block] = self._memory.chain(self.tokens, block, self._seed)
        return made
