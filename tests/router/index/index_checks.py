"""Chains for tests, and what must hold inside an index at any time."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from router.index import ByteIndex
from router.index.node import Node, hash_at
from router.types import Chain


def chained(words: Sequence[int] | str) -> Chain:
    """Block hashes of a text: each covers all words before it."""
    hashes = array("Q")
    above = 0
    for word in map(ord, words) if isinstance(words, str) else words:
        above = hash((above, word)) & 0xFFFF_FFFF_FFFF_FFFF
        hashes.append(above)
    return hashes


def size(node: Node) -> int:
    """Blocks of the run."""
    return len(node.run) // 8


def check_tree(index: ByteIndex) -> None:
    """What must hold inside: nothing kept that nobody holds, every cross-reference right."""
    nodes = index._nodes
    holders: dict[Node, int] = {}
    for slot, room in index._rooms.items():
        blocks = used = 0
        owners = set()
        for node, touch in room.held.items():
            assert nodes[hash_at(node.run, 0)] is node
            whole = node.full >> slot & 1
            part = (node.partial or {}).get(slot, 0)
            assert bool(whole) != bool(part), "holds all or a part"
            count = size(node) if whole else part
            blocks += count
            used += index._spans[node.start + count] - index._spans[node.start]
            holders[node] = holders.get(node, 0) | 1 << slot
            owners.add(id(touch))
            if node.parent is not None:
                assert node.parent.full >> slot & 1, "a block is held only if all before it are"
        assert (blocks, used) == (room.blocks, room.used)
        living = [touch for touch in room.order if touch.tail is not None]
        assert {id(touch) for touch in living} == owners
        assert all(room.held[touch.tail] is touch for touch in living if touch.tail)
        assert room.dead == len(room.order) - len(living)
        assert not room.order or room.order[0].tail is not None
    children: dict[Node, int] = {}
    for first, node in nodes.items():
        assert hash_at(node.run, 0) == first
        assert hash_at(node.run, size(node) - 1) == node.last
        assert node.full, "somebody holds the whole run"
        assert node.partial is None or node.partial
        partial = node.partial or {}
        assert all(0 < count < size(node) for count in partial.values())
        assert holders[node] == node.full | sum(1 << slot for slot in partial)
        above = node.parent
        assert node.start == (above.start + size(above) if above is not None else 0)
        if above is not None:
            assert nodes[hash_at(above.run, 0)] is above
            children[above] = children.get(above, 0) + 1
    assert all(node.children == children.get(node, 0) for node in nodes.values())
    assert index.blocks == sum(size(node) for node in nodes.values())
