"""One replica's LRU: what it holds, in the order it was last used.

Blocks are not kept in order one by one. A *touch* is one recording of one chain. What it still
owns is always one stretch of that chain, because later touches take over leading parts of it and
eviction takes from its end. So the least recently used block of a replica is the last one of its
oldest touch, and an LRU that is exact to the block costs one small object a touch.
"""

from __future__ import annotations

from collections import deque

import msgspec

from router.index.node import Node

FEW = 32
"""Dead touches that are never worth clearing out."""


class Touch(msgspec.Struct, gc=False, eq=False):
    """One use of a chain by one replica."""

    tail: Node | None
    """The deepest node it owns; None when later touches or eviction have taken everything."""
    when: float
    """Monotonic seconds."""


class Room(msgspec.Struct, eq=False):
    """How full one replica's KV cache is, and what is in it. Implements ``types.CacheRoom``.

    The mutable state of the index about one replica is here and in the nodes it holds.
    """

    capacity: int
    used: int = 0
    """Weight held."""
    blocks: int = 0
    """Blocks held."""
    held: dict[Node, Touch] = msgspec.field(default_factory=dict)
    """Each node of which it holds a part or all -> the latest touch that covered that."""
    order: deque[Touch] = msgspec.field(default_factory=deque)
    """Touches, oldest first. Dead ones (without a tail) stay until they come first or are many; the
    first one is alive whenever anything is held."""
    dead: int = 0
    """Dead touches in order."""

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
        """Hold nothing. The nodes must have been told."""
        self.held.clear()
        self.order.clear()
        self.used = self.blocks = self.dead = 0
