"""vLLM's block pool for full attention: paged blocks with reference counts, a map from hash to
block, and one queue of free blocks that is at once the LRU order of the prefix cache.

Follows ``vllm/v1/core/block_pool.py`` of vLLM 0.32:

- A freed block that has a hash goes to the queue's end, the last block of a request first, so that
  tails are evicted before heads. One without a hash goes to the front: it is the first to be used
  again.
- A block's content is forgotten only when the block is taken again, from the front of the queue.
- Blocks are not de-duplicated: two may carry one hash. A lookup finds the older; each leaves on its
  own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

NO_HASH = -1
"""Marks a block whose content nothing can find. Hashes are never equal to it."""


class BlockPool:
    """Blocks are small ints. One of ``num_blocks`` is set aside, as vLLM does for its null
    block."""

    __slots__ = (
        "cached",
        "copies",
        "free",
        "hash_of",
        "on_evicted",
        "on_removed",
        "references",
        "total",
    )

    def __init__(
        self,
        num_blocks: int,
        on_removed: Callable[[int], None] | None = None,
        on_evicted: Callable[[int], None] | None = None,
    ) -> None:
        """on_removed: told of every copy that leaves. on_evicted: told before it of a hash whose
        last copy leaves."""
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (one is set aside), not {num_blocks}")
        self.total = num_blocks - 1
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(self.total))
        self.references = [0] * self.total
        self.hash_of = [NO_HASH] * self.total
        self.cached: dict[int, int] = {}
        self.copies: dict[int, list[int]] = {}
        """Further blocks with a hash that ``cached`` has already, oldest first."""
        self.on_evicted = on_evicted
        self.on_removed = on_removed

    def lookup(self, hashes: Sequence[int], limit: int) -> list[int]:
        """The blocks of the longest run of leading hashes that is cached, at most ``limit`` of
        them."""
        find = self.cached.get
        found = []
        for position in range(min(limit, len(hashes))):
            block = find(hashes[position])
            if block is None:
                break
            found.append(block)
        return found

    def unreferenced(self, blocks: Sequence[int]) -> int:
        """How many of these lie in the free queue: touching them makes the free blocks fewer."""
        references = self.references
        count = 0
        for block in blocks:
            if not references[block]:
                count += 1
        return count

    def touch(self, blocks: Sequence[int]) -> None:
        """Add a reference to each block, taking the unreferenced ones out of the free queue."""
        references, free = self.references, self.free
        for block in blocks:
            if not references[block]:
                del free[block]
            references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take ``count`` blocks from the front of the free queue; what they held is evicted.

        Raises KeyError when there are fewer: callers ask ``len(pool.free)`` first.
        """
        pop, references, hash_of = self.free.popitem, self.references, self.hash_of
        taken = []
        for _ in range(count):
            block = pop(False)[0]
            if hash_of[block] != NO_HASH:
                self._evict(block)
            references[block] = 1
            taken.append(block)
        return taken

    def store(self, block: int, key: int) -> None:
        """A block is full: from now on a lookup may find it by its hash."""
        self.hash_of[block] = key
        if self.cached.setdefault(key, block) != block:
            self.copies.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each of a request's blocks, given in prompt order."""
        references, hash_of, free = self.references, self.hash_of, self.free
        unhashed = []
        for block in reversed(blocks):
            left = references[block] - 1
            references[block] = left
            if not left:
                if hash_of[block] == NO_HASH:
                    unhashed.append(block)
                else:
                    free[block] = None
        for block in reversed(unhashed):
            free[block] = None
            free.move_to_end(block, last=False)

    def clear(self) -> bool:
        """Forget every hash. False, and nothing done, while a request holds blocks (as in vLLM)."""
        if len(self.free) != self.total:
            return False
        self.cached.clear()
        self.copies.clear()
        self.hash_of = [NO_HASH] * self.total
        return True

    def _evict(self, block: int) -> None:
        key = self.hash_of[block]
        self.hash_of[block] = NO_HASH
        copies = self.copies.get(key)
        if copies is None:
            del self.cached[key]
            if self.on_evicted is not None:
                self.on_evicted(key)
        else:
            if self.cached[key] == block:
                self.cached[key] = copies.pop(0)
            else:
                copies.remove(block)
            if not copies:
                del self.copies[key]
        if self.on_removed is not None:
            self.on_removed(key)
