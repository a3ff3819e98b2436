"""The index against the naive model, whatever is done to both in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from index_checks import chained, check_tree
from naive_index import NaiveIndex

from router.index import ByteIndex

SLOTS = 4
GROWING = tuple(accumulate((1 + k // 3 for k in range(24)), initial=5))
UNIFORM = range(0, 16 * 200, 16)


class Machine(RuleBasedStateMachine):
    """Few words and few replicas, so that chains share, part, grow and resume all the time."""

    @initialize(spans=st.sampled_from([GROWING, UNIFORM, tuple(range(0, 300, 3))]))
    def start(self, spans: Sequence[int]) -> None:
        self.spans = spans
        self.index = ByteIndex(spans)
        self.naive = NaiveIndex(spans)
        self.now = 0.0
        self.texts: list[list[int]] = [[]]

    def both(self, slot: int, capacity: int) -> None:
        self.index.add_replica(slot, capacity)
        self.naive.add_replica(slot, capacity)

    def capacity(self, part: float) -> int:
        return int(part * 40 * (self.spans[-1] - self.spans[0]) / len(self.spans))

    @rule(slot=st.integers(0, SLOTS - 1), part=st.floats(0, 1))
    def add_or_remove(self, slot: int, part: float) -> None:
        if slot in self.naive.rooms:
            self.index.remove_replica(slot)
            self.naive.remove_replica(slot)
        else:
            self.both(slot, self.capacity(part))

    @rule(slot=st.integers(0, SLOTS - 1), part=st.floats(0, 1))
    def resize(self, slot: int, part: float) -> None:
        if slot in self.naive.rooms:
            self.index.resize(slot, self.capacity(part))
            self.naive.resize(slot, self.capacity(part))

    @rule(slot=st.integers(0, SLOTS - 1))
    def forget(self, slot: int) -> None:
        if slot in self.naive.rooms:
            self.index.forget(slot)
            self.naive.forget(slot)

    @rule(
        slot=st.integers(0, SLOTS - 1),
        data=st.data(),
        more=st.lists(st.integers(0, 1), max_size=12),
        step=st.sampled_from([0.0, 1.0]),
    )
    def record(self, slot: int, data: st.DataObject, more: list[int], step: float) -> None:
        """A known text cut somewhere (or not) and continued (or not)."""
        if slot not in self.naive.rooms:
            self.both(slot, self.capacity(1.0))
        text = data.draw(st.sampled_from(self.texts))
        cut = data.draw(st.integers(0, len(text)))
        text = (text[:cut] + more)[:40]
        self.texts.append(text)
        chain = chained(text)
        self.now += step
        self.index.record(slot, chain, self.now)
        self.naive.record(slot, chain, self.now)

    @rule(slot=st.integers(0, SLOTS - 1), data=st.data(), more=st.integers(1, 6))
    def grow(self, slot: int, data: st.DataObject, more: int) -> None:
        """A session's next turn: a known text, whole, and something new."""
        if slot not in self.naive.rooms:
            self.both(slot, self.capacity(1.0))
        text = (data.draw(st.sampled_from(self.texts)) + [2 + len(self.texts)] * more)[:40]
        self.texts.append(text)
        self.now += 1.0
        self.index.record(slot, chained(text), self.now)
        self.naive.record(slot, chained(text), self.now)

    @precondition(lambda self: len(self.texts) > 1)
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=5))
    def match(self, data: st.DataObject, more: list[int]) -> None:
        chain = chained(data.draw(st.sampled_from(self.texts)) + more)
        assert self.index.match(chain) == self.naive.match(chain)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "index"):
            return
        assert self.index._rooms.keys() == self.naive.rooms.keys()
        for slot, naive in self.naive.rooms.items():
            room = self.index.room(slot)
            assert (room.used, room.capacity) == (naive.used, naive.capacity)
            assert self.index.held(slot) == len(naive.blocks)
            if naive.blocks:
                assert room.oldest == naive.oldest
        assert self.index.blocks == self.naive.blocks
        for text in self.texts[-3:]:
            chain = chained(text)
            assert self.index.match(chain) == self.naive.match(chain)
        check_tree(self.index)

    def teardown(self) -> None:
        """Every text at the end, then eviction order block by block, then everything gone."""
        if not hasattr(self, "index"):
            return
        chains = [chained(text) for text in self.texts]
        for chain in chains:
            assert self.index.match(chain) == self.naive.match(chain)
        for slot, naive in self.naive.rooms.items():
            while naive.blocks:
                self.index.resize(slot, naive.used - 1)
                self.naive.resize(slot, naive.used - 1)
                for chain in chains[-4:]:
                    assert self.index.match(chain) == self.naive.match(chain)
                assert self.index.room(slot).used == naive.used
            check_tree(self.index)
        assert self.index.blocks == 0
        assert not self.index._nodes


TestAgainstTheModel = Machine.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
