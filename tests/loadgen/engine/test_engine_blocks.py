"""The block pool against a naive one that keeps every list the slow, obvious way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.engine.blocks import NO_HASH, BlockPool


class Naive:
    """vLLM's rules, literally: one list of free blocks, one list of (block, hash) in order of
    storing."""

    def __init__(self, total):
        self.free = list(range(total))
        self.references = [0] * total
        self.stored = []

    def lookup(self, keys, limit):
        found = []
        for key in keys[:limit]:
            blocks = [block for block, stored in self.stored if stored == key]
            if not blocks:
                break
            found.append(blocks[0])
        return found

    def touch(self, blocks):
        for block in blocks:
            if block in self.free:
                self.free.remove(block)
            self.references[block] += 1

    def take(self, count):
        taken, self.free = self.free[:count], self.free[count:]
        self.stored = [entry for entry in self.stored if entry[0] not in taken]
        for block in taken:
            self.references[block] = 1
        return taken

    def store(self, block, key):
        self.stored.append((block, key))

    def release(self, blocks):
        front, back = [], []
        hashed = {block for block, _ in self.stored}
        for block in reversed(blocks):
            self.references[block] -= 1
            if not self.references[block]:
                (back if block in hashed else front).append(block)
        self.free = front + self.free + back


request = st.tuples(
    st.lists(st.integers(0, 6), min_size=1, max_size=6),  # hashes of full blocks
    st.integers(0, 2),  # blocks without a hash
    st.integers(0, 3),  # which of the running ones to release first
)


@settings(max_examples=300, deadline=None)
@given(st.lists(request, max_size=40), st.integers(8, 14))
def test_like_the_naive_pool(requests, total):
    removed, removed_naive = [], []
    pool, naive = BlockPool(total + 1, removed.append), Naive(total)
    running = []
    for keys, plain, leave in requests:
        # A chain: equal hashes only after equal hashes.
        keys = [hash(tuple(keys[: end + 1])) & 0xFFFF for end in range(len(keys))]
        while running and len(running) > leave:
            blocks = running.pop(0)
            pool.release(blocks)
            naive.release(blocks)
        hits = pool.lookup(keys, len(keys) - 1)
        assert hits == naive.lookup(keys, len(keys) - 1)
        assert pool.unreferenced(hits) == sum(not naive.references[block] for block in hits)
        need = len(keys) + plain - len(hits)
        if need + pool.unreferenced(hits) > len(pool.free):
            continue
        before = [key for _, key in naive.stored]
        pool.touch(hits)
        naive.touch(hits)
        taken = pool.take(need)
        assert taken == naive.take(need)
        after = [key for _, key in naive.stored]
        for key in after:
            before.remove(key)
        removed_naive += before
        blocks = hits + taken
        for position in range(len(hits), len(keys)):
            pool.store(blocks[position], keys[position])
            naive.store(blocks[position], keys[position])
        running.append(blocks)
        assert list(pool.free) == naive.free
        assert pool.references == naive.references
        assert sorted(removed) == sorted(removed_naive)
        assert set(pool.cached) == {key for _, key in naive.stored}
    for blocks in running:
        pool.release(blocks)
    assert len(pool.free) == total
    assert pool.clear()
    assert not pool.cached
    assert set(pool.hash_of) == {NO_HASH}


def test_a_referenced_pool_is_not_cleared():
    pool = BlockPool(4)
    blocks = pool.take(1)
    pool.store(blocks[0], 5)
    assert not pool.clear()
    assert pool.lookup([5], 1) == blocks


def test_tails_are_evicted_before_heads_and_blocks_without_a_hash_first():
    pool = BlockPool(5)
    blocks = pool.take(4)
    for key, block in enumerate(blocks[:3]):
        pool.store(block, key)
    pool.release(blocks)
    assert pool.take(2) == [blocks[3], blocks[2]]
    assert pool.lookup([0, 1, 2], 3) == blocks[:2]


def test_a_pool_needs_two_blocks():
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(1)


def test_copies_are_found_oldest_first_and_leave_one_by_one():
    pool = BlockPool(5)
    blocks = pool.take(4)
    for block in blocks:
        pool.store(block, 7)
    order = []
    for block in blocks:
        order += pool.lookup([7], 1)
        pool.release([block])
        assert pool.take(1) == [block]
    assert order == blocks
    assert pool.lookup([7], 1) == []
