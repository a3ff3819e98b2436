"""What the index must be equal to: one ordered dict of blocks for each replica, nothing shared."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from router.types import Chain


class NaiveRoom:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[int, tuple[int, float]] = OrderedDict()  # hash -> weight, last use

    @property
    def used(self) -> int:
        return sum(weight for weight, _ in self.blocks.values())

    @property
    def oldest(self) -> float:
        return next(iter(self.blocks.values()))[1]

    def evict(self) -> list[int]:
        gone = []
        while self.used > self.capacity:
            gone.append(self.blocks.popitem(last=False)[0])
        return gone


class NaiveIndex:
    def __init__(self, spans: Sequence[int]) -> None:
        self.spans = spans
        self.rooms: dict[int, NaiveRoom] = {}

    def add_replica(self, slot: int, capacity: int) -> None:
        self.rooms[slot] = NaiveRoom(capacity)

    def resize(self, slot: int, capacity: int) -> None:
        self.rooms[slot].capacity = capacity
        self.rooms[slot].evict()

    def forget(self, slot: int) -> None:
        self.rooms[slot].blocks.clear()

    def remove_replica(self, slot: int) -> None:
        del self.rooms[slot]

    def record(self, slot: int, chain: Chain, now: float) -> None:
        room = self.rooms[slot]
        known = list(zip(chain, range(len(self.spans) - 1), strict=False))
        for block, position in reversed(known):
            room.blocks[block] = (self.spans[position + 1] - self.spans[position], now)
            room.blocks.move_to_end(block)
        room.evict()

    def depth(self, slot: int, chain: Chain) -> int:
        blocks = self.rooms[slot].blocks
        depth = 0
        while depth < min(len(chain), len(self.spans) - 1) and chain[depth] in blocks:
            depth += 1
        return depth

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        masks: dict[int, int] = {}
        for slot in self.rooms:
            if depth := self.depth(slot, chain):
                weight = self.spans[depth] - self.spans[0]
                masks[weight] = masks.get(weight, 0) | 1 << slot
        return sorted(masks.items(), reverse=True)

    @property
    def blocks(self) -> int:
        return len({block for room in self.rooms.values() for block in room.blocks})
