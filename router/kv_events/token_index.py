"""What every replica's engine holds, in tokens, and which prompts it will hold soon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

import msgspec

from router.kv_events.decode import Batch, Removed, Stored
from router.kv_events.rank_cache import RankCache
from router.types import Chain, TierShare, slots

FULL_ATTENTION = frozenset(("full_attention", "mla_attention", "sink_full_attention"))
"""Kinds of layers that need every earlier token: what these hold decides what can be reused. The
other groups of a hybrid model keep a window or a state, dropped and rebuilt along the way."""

GPU = "GPU"
FASTEST_FIRST = {GPU: 0, "CPU": 1}
"""Where a block is taken from that is on several media; from others in the order of their names."""
REMOTE = "REMOTE"
"""The locality of a tier that is not the engine's own: a store that the fleet shares."""

MAX_ROOTS = 1024
"""The most adapters of a replica whose path is remembered after they were unloaded."""
MAX_EXPECTED_BLOCKS = 8192
"""Blocks of one prompt that are noted as on their way: beyond, noting them would take longer than
what it is good for."""


class PendingPrompt(msgspec.Struct, eq=False):
    """A prompt on its way to a replica, with those of its blocks that the engine has not reported
    yet."""

    slot: int
    cache: RankCache
    blocks: list[int]
    deadline: float = 0.0
    """Monotonic seconds. The owner of the prompt gives it up at this time."""


class Held(msgspec.Struct):
    """What one replica holds, on each of its media."""

    block: int = 0
    """Tokens of a block in GPU memory, which all is counted in; 0 until known."""
    told: int = 0
    """The block size of the engine's metrics; 0 until known. A block is a multiple of it: under
    context parallelism, and where groups of a hybrid model have sizes of their own."""
    sure: bool = False
    """An event of several blocks has shown the size. One of a single block may be of a part of it,
    the end of a prompt."""
    caches: dict[str, RankCache] = {}
    """The cache of each medium, by the medium's name."""
    group: int | None = None
    """The group whose blocks count: the first full-attention group in the events."""
    roots: dict[str, str | None] = {}
    """Adapter's name -> where it was loaded from; None when events showed it to be another one
    than the engine's list of models has it."""
    odd: int = 0
    """Events that were left out, without those of groups that have no full attention."""


class TokenIndex:
    """Which replica holds which token blocks, by events; ``match`` is as in types.PrefixIndex.

    The table has one mask for each block that anybody holds in GPU memory, which is all there is
    for most fleets. Other media have tables of their own, and replicas with such are matched one by
    one.
    """

    def __init__(self, shared: Iterable[str] = ()) -> None:
        """shared: media that every replica reaches, whoever stored the block."""
        self._masks: dict[int, int] = {}
        self._tier_masks: dict[str, dict[int, int]] = {}
        """The same for each other medium."""
        self.shared = {_medium(each) for each in shared}
        """As set, and as events tell."""
        self._shared_parts: dict[str, int] = {}
        """GPU blocks that make one block of a shared medium of which events told."""
        self._replicas: dict[int, Held] = {}
        self._everybody = 0
        """Mask of the slots in the index."""
        self._compound = 0
        """Mask of the slots that have more than one lane."""
        self.sizes: dict[int, int] = {}
        """Tokens of a block -> mask of the replicas that have such blocks."""

    def add_replica(self, slot: int) -> None:
        """Add a replica of which nothing is known. Raises ValueError if the slot is taken."""
        if slot in self._replicas:
            raise ValueError(f"slot {slot} is taken; call remove_replica({slot}) first")
        held = Held(caches={}, roots={})
        held.caches[GPU] = RankCache(self._masks, 1 << slot)
        self._replicas[slot] = held
        self._everybody |= 1 << slot

    def remove_replica(self, slot: int) -> None:
        """The replica left the fleet. Raises KeyError if it is not in the index."""
        held = self._replicas.pop(slot)
        for cache in held.caches.values():
            for own in list(cache.expected):
                cache.give_up([own] * cache.expected[own])
            cache.empty(complete=False)
        self._compound &= ~(1 << slot)
        self._everybody &= ~(1 << slot)
        if held.block:
            self.sizes[held.block] &= ~(1 << slot)

    def __contains__(self, slot: int) -> bool:
        return slot in self._replicas

    @property
    def blocks(self) -> int:
        """Distinct blocks in the table."""
        return len(self._masks)

    def block(self, slot: int) -> int:
        """Tokens in one of the replica's blocks; 0 until its metrics or first event report it."""
        return self._replicas[slot].block

    def sized(self, slot: int, block: int) -> None:
        """Set the tokens in one of the replica's blocks, as its metrics report them."""
        held = self._replicas[slot]
        if block == held.told:
            return
        held.told = block
        if not held.block or held.block % block:
            held.sure = False
            self._size(slot, held, block)

    def _size(self, slot: int, held: Held, block: int) -> None:
        """Set the block size. What is held under another size is dropped. Before, blocks of this
        size were left out if it was too large."""
        if block == held.block:
            return
        for cache in held.caches.values():
            if len(cache):
                cache.empty(complete=cache.complete and block > held.block)
        if held.block:
            self.sizes[held.block] &= ~(1 << slot)
        held.block = block
        self.sizes[block] = self.sizes.get(block, 0) | 1 << slot

    def empty(self, slot: int, *, complete: bool) -> None:
        """A replica's cache is empty (complete), or what it holds has to be learned anew."""
        held = self._replicas[slot]
        held.sure = False  # it may have restarted with another size
        for cache in held.caches.values():
            cache.empty(complete=complete)

    def adapters(self, slot: int, roots: Mapping[str, str]) -> None:
        """The adapters a replica's engine has, and where it loaded them from. One that comes from
        another place than before is another adapter, and the engine takes it for one."""
        held = self._replicas[slot]
        for name, root in roots.items():
            before = held.roots.pop(name, None)
            if before is not None and before != root:
                self._forget_adapter(held, name)
            held.roots[name] = root
        while len(held.roots) > max(MAX_ROOTS, len(roots)):
            del held.roots[next(iter(held.roots))]

    def _forget_adapter(self, held: Held, name: str) -> None:
        for cache in held.caches.values():
            cache.forget_adapter(name)

    def apply(self, slot: int, batch: Batch) -> None:
        """Apply the changes of one engine step."""
        held = self._replicas[slot]
        for event in batch.events:
            if isinstance(event, Stored):
                self._store(slot, held, event)
            elif isinstance(event, Removed):
                cache = held.caches.get(_medium(event.medium))
                if cache is not None and event.group_idx in (None, held.group):
                    cache.remove(event)
            else:
                # The engine emptied what is its own. A store that others use as well has what it
                # had, and what was told of it is not told again.
                for medium, cache in held.caches.items():
                    if medium not in self.shared:
                        cache.empty(complete=True)

    def _store(self, slot: int, held: Held, event: Stored) -> None:
        kind = event.kv_cache_spec_kind
        if kind is not None and kind not in FULL_ATTENTION:
            return
        medium = _medium(event.medium)
        group = event.group_idx
        if group not in (None, held.group) and (medium != GPU or held.group is not None):
            return
        size = event.block_size
        gpu = held.caches[GPU]
        if medium != GPU and not event.token_ids and held.block:
            # A connector that names blocks of the engine without telling their tokens.
            cache = self._tier(slot, held, medium, size or held.block, event.locality)
            if cache is None or not cache.copy(event.block_hashes, gpu):
                held.odd += 1
            return
        if not event.token_ids or size * len(event.block_hashes) != len(event.token_ids):
            held.odd += 1
            return
        if medium != GPU:
            cache = self._tier(slot, held, medium, size, event.locality)
            if cache is None:
                held.odd += 1
            else:
                cache.store(event, gpu.place(event.parent_block_hash))
            return
        several = len(event.block_hashes) > 1
        if size != held.block:
            if not self._may_be(held, size, several):
                held.odd += 1
                return
            self._size(slot, held, size)
        held.sure = held.sure or several
        if held.group is None:
            held.group = group
        name = event.lora_name
        if name and event.parent_block_hash is None and gpu.replaces(event):
            self._forget_adapter(held, name)
            held.roots[name] = None
        gpu.store(event)

    def _tier(
        self, slot: int, held: Held, medium: str, size: int, locality: str | None
    ) -> RankCache | None:
        """Where a tier's blocks of a size of its own are kept; None where they cannot be compared
        with those of GPU memory, or with the tier's own."""
        if locality == REMOTE:
            self.shared.add(medium)
        parts, rest = divmod(size, held.block) if held.block else (0, 0)
        cache = held.caches.get(medium)
        if parts < 1 or rest or (cache is not None and len(cache) and cache.parts != parts):
            return None
        if cache is None or cache.parts != parts:
            masks = self._tier_masks.setdefault(medium, {})
            cache = held.caches[medium] = RankCache(masks, 1 << slot, parts)
            cache.complete = held.caches[GPU].complete
            self._compound |= 1 << slot
        if medium in self.shared:
            self._shared_parts[medium] = parts
        return cache

    def _may_be(self, held: Held, size: int, several: bool) -> bool:
        """Whether an event of this size tells the size of blocks in GPU memory."""
        if held.sure or (held.told and size % held.told):
            return False
        return several or not held.block or (size > held.block and not size % held.block)

    # Lookup

    def match(
        self, chain: Chain, block: int, asked: int, behind: dict[int, TierShare] | None = None
    ) -> list[tuple[float, int]]:
        """(leading tokens held, mask of holders), masks disjoint, of the replicas asked about.

        These must have blocks of `block` tokens, and the chain must be made with such. Tokens in
        tiers count like others; into `behind` goes by slot what of them lies there.
        """
        found: list[tuple[float, int]] = []
        if not chain:
            return found
        compound = asked & self._compound
        alive = asked & ~compound
        depth = 0
        # groupby steps through blocks with the same holders without a line of Python for each.
        for mask, same in groupby(map(self._masks.get, chain)):
            left = alive & mask if mask is not None else 0
            if left != alive:
                if depth:
                    found.append((float(depth * block), alive ^ left))
                alive = left
                if not alive:
                    break
            depth += len(list(same))
        if alive and depth:
            found.append((float(depth * block), alive))
        if self._shared_parts:
            found = self._reach(found, chain, block, asked & ~compound, behind)
        for slot in slots(compound):
            tokens, media = self._deepest(self._tiers_of(slot), chain, 0)
            if tokens:
                held = self._replicas[slot].block
                found.append((float(tokens * held), 1 << slot))
                if media and behind is not None:
                    share = {medium: float(count * held) for medium, count in media.items()}
                    behind[slot] = TierShare(float(tokens * held), share)
        return found

    def _reach(
        self,
        found: list[tuple[float, int]],
        chain: Chain,
        block: int,
        asked: int,
        behind: dict[int, TierShare] | None,
    ) -> list[tuple[float, int]]:
        """`found` in GPU memory, and what these replicas, and those that hold nothing, reach in
        shared tiers from there on."""
        tiers = self._tiers_of(-1)
        reached = []
        nothing = asked & self._everybody
        for _, mask in found:
            nothing &= ~mask
        for depth, mask in [*found, (0.0, nothing)]:
            if not mask:
                continue
            more, media = self._deepest(tiers, chain, int(depth) // block)
            tokens = depth + more * block
            if tokens:
                reached.append((tokens, mask))
            if more and behind is not None:
                share = TierShare(tokens, {each: float(n * block) for each, n in media.items()})
                for slot in slots(mask):
                    behind[slot] = share
        return reached

    def _tiers_of(self, slot: int) -> list[tuple[str, Mapping[int, int], int, int]]:
        """(medium, masks, bits that count, parts of a block) of what a replica reaches, fastest
        first; with -1, of what all replicas reach."""
        tiers: dict[str, tuple[str, Mapping[int, int], int, int]] = {}
        for medium, parts in self._shared_parts.items():
            tiers[medium] = medium, self._tier_masks[medium], -1, parts
        if slot >= 0:
            for medium, cache in self._replicas[slot].caches.items():
                if medium not in tiers:
                    masks = self._masks if medium == GPU else self._tier_masks[medium]
                    tiers[medium] = medium, masks, 1 << slot, cache.parts
        return sorted(
            tiers.values(),
            key=lambda tier: (FASTEST_FIRST.get(tier[0], len(FASTEST_FIRST)), tier[0]),
        )

    def _deepest(
        self, tiers: Sequence[tuple[str, Mapping[int, int], int, int]], chain: Chain, first: int
    ) -> tuple[int, dict[str, int]]:
        """How many blocks of a chain, from `first` on, are on any of these media without a gap, and
        how many on each but GPU memory."""
        media: dict[str, int] = {}
        blocks = len(chain)
        for at in range(first, blocks):
            for medium, masks, bits, parts in tiers:
                # A tier's block is there as a whole, and named by its last part.
                last = at - at % parts + parts - 1
                if last < blocks and masks.get(chain[last], 0) & bits:
                    if medium != GPU:
                        media[medium] = media.get(medium, 0) + 1
                    break
            else:
                return at - first, media
        return blocks - first, media

    # Requests on their way, and what answers show

    def expect(self, slot: int, chain: Chain) -> PendingPrompt:
        """A prompt is sent to a replica: it counts as held there until told or given up."""
        cache = self._replicas[slot].caches[GPU]
        return PendingPrompt(slot, cache, cache.expect(chain[:MAX_EXPECTED_BLOCKS]))

    def give_up(self, pending: PendingPrompt) -> None:
        """The request failed, or its time is over. Only what the engine reported still counts."""
        pending.cache.give_up(pending.blocks)
        pending.blocks = []

    def answered(self, slot: int, chain: Chain, predicted: int, cached: int) -> None:
        """Compare an answer's ``cached_tokens`` with the prediction, in whole blocks."""
        held = self._replicas[slot]
        if not held.block or len(held.caches) > 1:
            return  # which medium it came from is not known
        cache = held.caches[GPU]
        blocks = cached // held.block
        if blocks < predicted // held.block:
            cache.doubt(chain[blocks : predicted // held.block])
        if not cache.complete or cache.learned:
            # The last block is computed anew in any case, and need not be missing.
            cache.learn(chain if blocks < len(chain) - 1 else chain[:blocks], blocks)

    # Facts about one replica

    def tiers_told(self, slot: int) -> tuple[bool, bool]:
        """Whether its events report a medium behind GPU memory, so that it can be looked up; and
        whether a salted prompt can be looked up there too."""
        caches = self._replicas[slot].caches
        told = [cache for medium, cache in caches.items() if medium != GPU and cache.placed]
        return bool(told), bool(told) and all(cache.salts_told for cache in told)

    def complete(self, slot: int) -> bool:
        """Whether the engine has reported everything that it holds."""
        return all(cache.complete for cache in self._replicas[slot].caches.values())

    def salts_told(self, slot: int) -> bool:
        """Whether its events distinguish salted prompts from others."""
        return any(cache.salts_told for cache in self._replicas[slot].caches.values())

    def placed(self, slot: int) -> int:
        """Tokens that the replica's engine is known to hold, each block counted once."""
        held = self._replicas[slot]
        return held.block * sum(cache.placed * cache.parts for cache in held.caches.values())

    def strays(self, slot: int) -> int:
        """The number of events about blocks whose parent is unknown."""
        return sum(cache.strays for cache in self._replicas[slot].caches.values())


def _medium(told: str | None) -> str:
    """A medium in one spelling. Connectors spell it differently, and engines that have only one
    leave it out."""
    return told.upper() if told else GPU
