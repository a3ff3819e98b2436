"""Which replica holds which prefix: a radix tree over block hashes with one LRU per replica.

The LRU does not keep blocks in order one by one. A *touch* is one recording of one chain. What it
still owns is always one stretch of that chain, because later touches take over leading parts of it
and eviction takes from its end. So the least recently used block of a replica is the last one of
its oldest touch, and an LRU that is exact to the block costs one small object a touch.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from router.index.node import Node, common, cut, hash_at, stay, trim
from router.types import Chain, slots

# What one of each costs beside its hashes and its dict entries: the objects, a run's first and last
# hash as numbers, a time.
NODE_BYTES = 72 + 56 + 32 + 32
TOUCH_BYTES = 32 + 24 + 8

FEW = 32
"""Up to so many dead touches are never cleared out."""


class Touch(msgspec.Struct, gc=False, eq=False):
    """One use of a chain by one replica, an entry of its LRU."""

    tail: Node | None
    """The deepest node it owns; None when later touches or eviction have taken everything."""
    when: float
    """The time of the use, in monotonic seconds."""


class Room(msgspec.Struct, eq=False):
    """How full one replica's KV cache is, and what is in it. Implements ``types.CacheRoom``.

    The mutable state of the index about one replica is here and in the nodes it holds.
    """

    bit: int
    """The mask that has only its slot."""
    capacity: int
    used: int = 0
    """The weight that the replica holds."""
    blocks: int = 0
    """The number of blocks that the replica holds."""
    held: dict[Node, Touch] = msgspec.field(default_factory=dict)
    """Each node of which it holds a part or all -> the latest touch that covered that."""
    order: deque[Touch] = msgspec.field(default_factory=deque)
    """Touches, oldest first. Dead ones (without a tail) stay until they come first or are many; the
    first one is alive whenever anything is held."""
    dead: int = 0
    """The number of dead touches in `order`."""

    @property
    def oldest(self) -> float:
        """When the least recently used block was last used; 0 when nothing is held."""
        return self.order[0].when if self.order else 0.0

    def settle(self) -> None:
        """Clear dead touches: those at the front, and all of them when they are a fifth."""
        order = self.order
        if self.dead > FEW and 5 * self.dead > len(order):
            living = [touch for touch in order if touch.tail is not None]
            order.clear()
            order.extend(living)
            self.dead = 0
        while order and order[0].tail is None:
            order.popleft()
            self.dead -= 1

    def empty(self) -> None:
        """Forget everything. The caller has already removed the slot from the nodes."""
        self.held.clear()
        self.order.clear()
        self.used = self.blocks = self.dead = 0


class ByteIndex:
    """Implements ``types.PrefixIndex``.

    A lookup or a recording costs the number of branches on the chain's way, not of its blocks:
    since a hash covers all blocks before it, a run of blocks matches exactly if its last hash does.

    spans[k] is the weight before block k, so that the first n blocks weigh ``spans[n] - spans[0]``;
    a tuple, or a range when all blocks weigh the same. Blocks of a chain beyond the last span are
    neither recorded nor matched.

    Memory is bounded by the replicas' capacities: a node is deleted with its last holder.
    """

    __slots__ = ("_limit", "_nodes", "_rooms", "_spans", "blocks")

    blocks: int
    """Distinct blocks that any replica holds."""

    def __init__(self, spans: Sequence[int]) -> None:
        """Raises ValueError unless `spans` has at least two entries and grows."""
        self._spans = from_zero(spans)
        self._limit = len(spans) - 1
        self._nodes: dict[int, Node] = {}  # by the first hash of its run
        self._rooms: dict[int, Room] = {}
        self.blocks = 0

    @property
    def spans(self) -> Sequence[int]:
        """The byte offset at which each block starts."""
        return self._spans

    def add_replica(self, slot: int, capacity: int) -> None:
        """Start an empty LRU of this weight for a slot. Raises ValueError if the slot is taken."""
        if slot < 0:
            raise ValueError(f"slot must be 0 or more, got {slot}")
        if slot in self._rooms:
            raise ValueError(f"slot {slot} is taken; call remove_replica({slot}) first")
        self._rooms[slot] = Room(1 << slot, checked(capacity))

    def resize(self, slot: int, capacity: int) -> None:
        """Set the slot's capacity and evict at once what exceeds it.

        Raises KeyError, ValueError.
        """
        room = self.room(slot)
        room.capacity = checked(capacity)
        if room.used > capacity:
            self._evict(slot, room)
            room.settle()

    def forget(self, slot: int) -> None:
        """Drop all that the slot holds, and keep its capacity.

        The cost grows with its nodes, not its blocks.
        """
        room = self.room(slot)
        bit = room.bit
        for node in room.held:
            if node.full & bit:
                node.full ^= bit
            else:
                forget_part(node, slot)
            if not node.full:
                self._shorten(node)
        room.empty()

    def remove_replica(self, slot: int) -> None:
        """Forget the slot altogether; it may be added again. Raises KeyError if it is not there."""
        self.forget(slot)
        del self._rooms[slot]

    def room(self, slot: int) -> Room:
        """The slot's LRU, live until remove_replica. Raises KeyError if the slot is not there."""
        try:
            return self._rooms[slot]
        except KeyError:
            raise KeyError(f"slot {slot} is not in the index; call add_replica first") from None

    def match(self, chain: Chain) -> list[tuple[int, int]]:
        """Pairs of leading weight held and mask of holders, deepest first.

        Masks are disjoint, none is empty.
        """
        spans = self._spans
        find = self._nodes.get
        end = min(len(chain), self._limit)
        depth = 0
        parent: Node | None = None
        alive = 0  # who holds everything before depth; nobody at depth 0, since that is not told
        found: list[tuple[int, int]] = []
        while depth < end:
            node = find(chain[depth])
            if node is None or node.parent is not parent:
                break
            run = node.run
            size = reach = len(run) >> 3
            if depth + size > end or node.last != chain[depth + size - 1]:
                reach = common(run, chain, depth, min(size, end - depth))
            if node.partial is not None:
                alive = stay(node, alive, reach, spans, found)
            else:
                full = node.full
                if alive and full != alive:
                    found.append((spans[depth], alive ^ full))
                alive = full
            depth += reach
            if reach < size:
                break
            parent = node
        if alive:
            found.append((spans[depth], alive))
        found.reverse()
        return found

    def record(self, slot: int, chain: Chain, now: float) -> Room:
        """The slot's replica has, or will have, the whole chain: insert it, touch it, evict.
        Returns the slot's LRU.

        The touch is tail first: of one chain, the last blocks are evicted first, and a chain that
        is heavier than the capacity keeps its head. now is in monotonic seconds; what orders the
        LRU is the order of the calls. Raises KeyError if the slot is not there.
        """
        room = self._rooms.get(slot) or self.room(slot)
        bit = room.bit
        spans = self._spans
        nodes = self._nodes
        held = room.held
        end = min(len(chain), self._limit)
        depth = 0
        parent: Node | None = None
        touch = Touch(None, now)
        while depth < end:
            node = nodes.get(chain[depth])
            if node is None:
                parent = self._grow(parent, chain, depth, end, room, touch)
                break
            if node.parent is not parent:
                break  # two chains' hashes collide: what comes before counts, the rest cannot
            run = node.run
            size = reach = len(run) >> 3
            had = size
            if not node.full & bit:
                had = node.partial.get(slot, 0) if node.partial is not None else 0
            if depth + size > end or node.last != chain[depth + size - 1]:
                reach = common(run, chain, depth, min(size, end - depth))
                if depth + reach < end or had > reach:
                    # Chains part here, or what this replica holds after it is used less lately.
                    node = self._split(node, reach)
                    size = reach
            if had:
                old = held[node]
                if old.tail is node:
                    old.tail = None
                    room.dead += 1
            held[node] = touch
            if had < reach:
                hold_more(node, slot, bit, had, reach)
                room.blocks += reach - had
                room.used += spans[depth + reach] - spans[depth + had]
            if parent is not None and node.full == bit == parent.full and parent.children == 1:
                self._merge(parent, node, held)
            depth += reach
            parent = node
        if parent is not None:
            touch.tail = parent
            room.order.append(touch)
            if room.used > room.capacity:
                self._evict(slot, room)
            room.settle()
        return room

    def _grow(
        self, parent: Node | None, chain: Chain, depth: int, end: int, room: Room, touch: Touch
    ) -> Node:
        """Put in the blocks of a chain that nobody holds. Returns the node that they end in."""
        blocks, bit = end - depth, room.bit
        run = chain[depth:end].tobytes()
        if parent is not None and parent.full == bit and not parent.children:
            node = parent
            node.run += run
            node.last = chain[end - 1]
        else:
            node = Node(run, chain[end - 1], depth, parent, bit)
            self._nodes[chain[depth]] = node
            room.held[node] = touch
            if parent is not None:
                parent.children += 1
        self.blocks += blocks
        room.blocks += blocks
        room.used += self._spans[end] - self._spans[depth]
        return node

    def held(self, slot: int) -> int:
        """Blocks the slot holds. Raises KeyError if the slot is not there."""
        return self.room(slot).blocks

    def share(self, slot: int) -> float:
        """The part of the slot's capacity in use, from 0 to 1. Raises KeyError."""
        room = self.room(slot)
        return room.used / room.capacity if room.capacity else 0.0

    def rooms(self) -> list[Room]:
        """The LRUs of all slots."""
        return list(self._rooms.values())

    def has(self, node: Node) -> bool:
        """Whether a node that was met earlier is still in the tree."""
        return self._nodes.get(hash_at(node.run, 0)) is node

    def touches(self, slot: int, since: float = 0.0) -> Iterator[tuple[float, Chain]]:
        """(when used, chain) of all the slot holds, oldest first: recorded again in this order in
        an empty room, they make the same room. Only those used since then, if that is given.

        The index may change meanwhile: what is recorded then may be left out. Raises KeyError.
        """
        room = self.room(slot)
        bit = room.bit
        for touch in list(room.order):
            node = touch.tail
            if node is None or touch.when < since or room.held.get(node) is not touch:
                continue
            end = len(node.run)
            if not node.full & bit:
                assert node.partial is not None
                end = 8 * node.partial[slot]
            runs = [node.run[:end]]
            while (node := node.parent) is not None:
                runs.append(node.run)
            runs.reverse()
            yield touch.when, array("Q", b"".join(runs))

    def nbytes(self) -> int:
        """An estimate of resident bytes.

        The cost grows with the number of replicas, not of blocks.
        """
        rooms = self._rooms.values()
        return (
            self.blocks * 8
            + len(self._nodes) * NODE_BYTES
            + sys.getsizeof(self._nodes)
            + sum(sys.getsizeof(room.held) + len(room.order) * TOUCH_BYTES for room in rooms)
        )

    def _evict(self, slot: int, room: Room) -> None:
        """Drop the least recently used blocks until the rest fits. Leaves room unsettled."""
        spans = self._spans
        held = room.held
        bit = room.bit
        order = room.order
        while (over := room.used - room.capacity) > 0:
            touch = order[0]
            node = touch.tail
            if node is None:
                order.popleft()
                room.dead -= 1
                continue
            start = node.start
            full = node.full & bit
            if full:
                count = len(node.run) >> 3
            else:
                assert node.partial is not None
                count = node.partial[slot]
            weight = spans[start + count] - over
            keep = max(bisect_right(spans, weight, start, start + count) - 1 - start, 0)
            room.used -= spans[start + count] - spans[start + keep]
            room.blocks -= count - keep
            if keep and node.full == bit and node.partial is None:
                self.blocks -= cut(node, keep)  # nobody else has the node: what usually happens
                continue
            if full:
                node.full ^= bit
            if keep:
                if node.partial is None:
                    node.partial = {}
                node.partial[slot] = keep
            else:
                if not full:
                    forget_part(node, slot)
                del held[node]
                parent = node.parent
                if parent is not None and held[parent] is touch:
                    touch.tail = parent
                else:
                    touch.tail = None
                    room.dead += 1
            if not node.full:
                self._shorten(node)

    def _shorten(self, node: Node) -> None:
        """Nobody holds the whole run any more: cut it to what is held, or delete the node."""
        if node.partial:
            self.blocks -= trim(node)
            return
        self.blocks -= len(node.run) >> 3
        first = hash_at(node.run, 0)
        if self._nodes.get(first) is node:
            del self._nodes[first]
        if node.parent is not None:
            node.parent.children -= 1
            node.parent = None  # else the last of a long line would free the others recursively

    def _split(self, node: Node, count: int) -> Node:
        """Give the first count blocks of a run their own node, and return that.

        The node keeps its identity as the end of the run, so that its children's parent is right.
        """
        nodes = self._nodes
        rooms = self._rooms
        run = node.run
        last = hash_at(run, count - 1)
        head = Node(run[: 8 * count], last, node.start, node.parent, node.full, None, 1)
        node.run = run[8 * count :]
        node.start += count
        node.parent = head
        nodes[hash_at(run, 0)] = head
        nodes[hash_at(run, count)] = node
        for slot in slots(node.full):
            held = rooms[slot].held
            held[head] = held[node]
        if node.partial is not None:
            before, after = {}, {}
            for slot, had in node.partial.items():
                held = rooms[slot].held
                touch = held[head] = held[node]
                if had < count:
                    before[slot] = had
                else:
                    head.full |= 1 << slot
                if had > count:
                    after[slot] = had - count
                else:
                    # Who holds a part holds nothing behind it: the part ends its touch.
                    touch.tail = head
                    del held[node]
            head.partial = before or None
            node.partial = after or None
        return head

    def _merge(self, parent: Node, node: Node, held: dict[Node, Touch]) -> None:
        """Undo a split whose branch is gone: put the run of the parent before its only child's.

        One slot, with this room's held, holds both in full and used them last at the same time; no
        other holds more than a part of the parent. The child keeps its identity, as in a split.
        """
        nodes = self._nodes
        del nodes[hash_at(node.run, 0)]
        parent.run += node.run
        node.run = parent.run
        node.start = parent.start
        node.parent = parent.parent
        nodes[hash_at(node.run, 0)] = node
        del held[parent]
        if parent.partial is not None:
            node.partial = parent.partial
            for slot in parent.partial:
                other = self._rooms[slot].held
                touch = other[node] = other.pop(parent)
                touch.tail = node  # a part ends its touch


def hold_more(node: Node, slot: int, bit: int, had: int, reach: int) -> None:
    """The slot, which held the first had blocks of a node, holds the first reach."""
    if 8 * reach < len(node.run):
        if node.partial is None:
            node.partial = {}
        node.partial[slot] = reach
    else:
        if had:
            forget_part(node, slot)
        node.full |= bit


def forget_part(node: Node, slot: int) -> None:
    """The slot does not hold a part of the node any more (nothing of it, or all)."""
    assert node.partial is not None
    del node.partial[slot]
    if not node.partial:
        node.partial = None


def checked(capacity: int) -> int:
    """Raises ValueError for a capacity that is negative."""
    if capacity < 0:
        raise ValueError(f"capacity must be 0 or more, got {capacity}")
    return capacity


def from_zero(spans: Sequence[int]) -> Sequence[int]:
    """Spans that begin at 0. Raises ValueError for spans that do not grow or have no block."""
    if len(spans) < 2:
        raise ValueError("spans needs at least two entries: where block 0 starts and where it ends")
    first = spans[0]
    if isinstance(spans, range):
        if spans.step < 0:
            raise ValueError("spans must grow, but the range has a negative step")
        return range(0, spans[-1] - first + 1, spans.step)
    for k, (before, after) in enumerate(pairwise(spans)):
        if after <= before:
            raise ValueError(f"spans must grow, but spans[{k + 1}] is {after} after {before}")
    return tuple(span - first for span in spans) if first else spans
