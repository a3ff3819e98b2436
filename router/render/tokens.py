"""A tokenised prompt, and the hashes of its token blocks."""

from __future__ import annotations

from array import array

import xxhash

from router.kv_events.token_chain import TOKEN_BYTES, chain
from router.render.loading import ExactModel
from router.render.memory import TokenMemory
from router.types import Chain

PAGE = 4096
"""The number of tokens whose block hashes are remembered together."""


class ChainMemory:
    """Block hashes of prompts' beginnings. A page is found by its tokens and by the hash before it,
    which covers all that comes before."""

    def __init__(self, limit: int) -> None:
        """`limit` is in bytes."""
        self._pages = TokenMemory(limit)

    def chain(self, tokens: bytes, block: int, seed: int) -> Chain:
        """The same as kv_events.token_chain.chain, with the hashes of whole pages remembered."""
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
        """An estimate of the bytes in use."""
        return self._pages.nbytes


class TokenPrompt:
    """A prompt's token ids, 32 bits each, and its chain for each block size asked for. It is what
    exact mode leaves in `Prompt.tokens`."""

    __slots__ = ("_chains", "_memory", "_model", "_seed", "count", "ids", "salted")

    def __init__(
        self, ids: bytes, seed: int, salted: bool, memory: ChainMemory, model: ExactModel
    ) -> None:
        """`seed` separates its adapter and salt from others (kv_events.token_chain.seed)."""
        self.ids = ids
        self.count = len(ids) // TOKEN_BYTES
        self.salted = salted
        self._seed = seed
        self._memory = memory
        self._model = model
        self._chains: dict[int, Chain] = {}

    @property
    def replicas(self) -> int:
        """The mask of the replicas whose engines make the same tokens, as the check found."""
        return self._model.mask

    def chain(self, block: int) -> Chain:
        """The hashes of its full blocks of `block` tokens."""
        made = self._chains.get(block)
        if made is None:
            made = self._chains[block] = self._memory.chain(self.ids, block, self._seed)
        return made
