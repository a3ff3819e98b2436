"""A cache tier behind GPU memory: what it holds, and how requests get their blocks from it.

As vLLM's connectors have it, blocks are loaded whole, a request waits for its blocks without being
in a step, and the transfers pass one link, one request after another. A block enters the tier when
GPU memory evicts it, and stays there when it is loaded; the least recently used leaves first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import inf

from loadgen.engine.blocks import BlockPool
from loadgen.engine.outcome import CacheObserver, Counters
from loadgen.engine.params import EngineParams
from loadgen.engine.request import Request, Stage


class Tier:
    """The mutable state: ``blocks``, hashes with the least recently used first; ``loading``, (end
    of its transfer, request) in this order; and when the link has done what was asked of it."""

    __slots__ = ("_free_at", "blocks", "loading", "on_removed", "on_stored", "room")

    def __init__(
        self,
        room: int,
        on_stored: Callable[[int], None] | None = None,
        on_removed: Callable[[int], None] | None = None,
    ) -> None:
        """room: blocks, at least 1. The callbacks are told of each block that enters or leaves."""
        self.room = room
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.loading: deque[tuple[float, Request]] = deque()
        self.on_stored = on_stored
        self.on_removed = on_removed
        self._free_at = 0.0

    @property
    def due(self) -> float:
        """When the next transfer is over; infinity without any."""
        return self.loading[0][0] if self.loading else inf

    def put(self, key: int) -> None:
        """GPU memory has evicted a block."""
        blocks = self.blocks
        if key in blocks:
            blocks.move_to_end(key)
            return
        blocks[key] = None
        if self.on_stored is not None:
            self.on_stored(key)
        if len(blocks) > self.room:
            oldest, _ = blocks.popitem(last=False)
            if self.on_removed is not None:
                self.on_removed(oldest)

    def run(self, hashes: Sequence[int], first: int, limit: int) -> int:
        """How many hashes from ``first`` on, up to ``limit``, are here without a gap."""
        blocks = self.blocks
        at = first
        while at < limit and hashes[at] in blocks:
            at += 1
        return at - first

    def touch(self, hashes: Sequence[int], first: int, count: int) -> None:
        """These blocks are used. The last ones count as used first, so that tails are evicted
        before heads."""
        move = self.blocks.move_to_end
        for at in range(first + count - 1, first - 1, -1):
            move(hashes[at])

    def transfer(self, request: Request, seconds: float, now: float) -> None:
        """Load a request's blocks, behind what is asked of the link already."""
        self._free_at = max(self._free_at, now) + seconds
        self.loading.append((self._free_at, request))

    def abort(self, request: Request) -> None:
        """Nobody waits for it any more. The link is busy with it all the same."""
        self.loading = deque(each for each in self.loading if each[1] is not request)

    def clear(self) -> None:
        """Forget every block."""
        self.blocks.clear()


def tier_of(params: EngineParams, observer: CacheObserver | None) -> Tier | None:
    """An engine's tier, empty; None where it has none."""
    room = params.offload_tokens // params.block_size
    if not room:
        return None
    if observer is None:
        return Tier(room)
    return Tier(room, observer.offloaded, observer.dropped)


def load(
    tier: Tier,
    pool: BlockPool,
    params: EngineParams,
    counters: Counters,
    request: Request,
    now: float,
) -> bool:
    """Have what the tier holds of the first waiting request loaded; it leaves the queue. False
    where the tier has nothing for it, or its blocks do not fit.

    It gets blocks for all that it has to compute too: requests that wait for each other's blocks
    would wait for ever.
    """
    if request.blocks:
        return False  # they are here
    size, prompt = params.block_size, request.prompt_tokens
    limit = (prompt - 1) // size
    hits = pool.lookup(request.hashes, limit)
    first = len(hits)
    found = tier.run(request.hashes, first, limit)
    target = prompt + request.outputs
    need = -(-target // size) - first
    if not found or need + pool.unreferenced(hits) > len(pool.free):
        return False
    # Before GPU memory evicts, which may push these out of the tier.
    tier.touch(request.hashes, first, found)
    pool.touch(hits)
    request.hashed = first
    request.blocks = hits
    request.blocks += pool.take(need)
    start, tokens = first * size, found * size
    request.computed = start + tokens
    seconds = params.offload_base_seconds + params.offload_token_seconds * tokens
    counters.offload_load_seconds += seconds
    if not request.preemptions:
        request.scheduled_at = now
        request.cached_tokens = start + tokens
        request.loaded_tokens = tokens
        counters.prefix_queries += target
        counters.prefix_hits += start
        counters.offload_queries += target - start
        counters.offload_hits += tokens
    request.stage = Stage.FETCHING
    tier.transfer(request, seconds, now)
    return True
