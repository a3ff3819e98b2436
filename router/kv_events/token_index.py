"""What every replica's engine holds, in tokens, and which prompts will be there soon."""

from __future__ import annotations

from itertools import groupby

import msgspec

from router.kv_events.decode import Batch, Removed, Stored
from router.kv_events.rank_cache import Lane
from router.types import Chain, slots

FULL_ATTENTION = frozenset(("full_attention", "mla_attention", "sink_full_attention"))
"""Kinds of layers that need every earlier token: what these hold decides what can be reused. The
other groups of a hybrid model keep a window or a state, dropped and rebuilt along the way."""

WORTH = {"GPU": 1.0, "CPU": 0.9, "STORAGE": 0.6, "DISK": 0.6}
"""What a token on a medium saves, as a share of computing it: loading takes time too."""
OTHER_WORTH = 0.6

MOST_EXPECTED = 8192
"""Blocks of one prompt that are noted as on their way: beyond, noting them would take longer than
what it is good for."""


class Coming(msgspec.Struct, eq=False):
    """A prompt on its way to a replica, and its blocks that the engine has not told of yet."""

    slot: int
    lane: Lane
    blocks: list[int]
    deadline: float = 0.0
    """Monotonic seconds, kept by whoever gives it up in time."""


class Held(msgspec.Struct):
    """One replica's caches."""

    block: int = 0
    """Tokens of a block; 0 until known."""
    sure: bool = False
    """An event told the tokens of a block."""
    lanes: dict[tuple[int, str], Lane] = {}
    """(data-parallel rank, medium) -> what is there."""
    group: int | None = None
    """The group whose blocks count: the first of full attention that was told of."""
    odd: int = 0
    """Events left out: groups without full attention are not among them."""


class TokenIndex:
    """Which replica holds which token blocks, by events; ``match`` is as in types.PrefixIndex.

    The table has one mask for each block that anybody holds in GPU memory at rank 0, which is all
    there is for most fleets. Other ranks and media have tables of their own, and replicas with such
    are matched one by one.
    """

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}
        self._replicas: dict[int, Held] = {}
        self._compound = 0
        """Mask of the slots that have more than one lane."""
        self.sizes: dict[int, int] = {}
        """Tokens of a block -> mask of the replicas that have such blocks."""

    def add_replica(self, slot: int) -> None:
        """A replica of which nothing is known. Raises ValueError if the slot is taken."""
        if slot in self._replicas:
            raise ValueError(f"slot {slot} is taken; call remove_replica({slot}) first")
        held = Held(lanes={})
        held.lanes[0, "GPU"] = Lane(self._masks, 1 << slot)
        self._replicas[slot] = held

    def remove_replica(self, slot: int) -> None:
        """The replica left. Raises KeyError if it is not there."""
        held = self._replicas.pop(slot)
        for lane in held.lanes.values():
            for own in list(lane.expected):
                lane.give_up([own] * lane.expected[own])
            lane.empty(complete=False)
        self._compound &= ~(1 << slot)
        if held.block:
            self.sizes[held.block] &= ~(1 << slot)

    def __contains__(self, slot: int) -> bool:
        return slot in self._replicas

    @property
    def blocks(self) -> int:
        """Distinct blocks in the table."""
        return len(self._masks)

    def block(self, slot: int) -> int:
        """Tokens of the replica's blocks; 0 until its first event."""
        return self._replicas[slot].block

    def sized(self, slot: int, block: int) -> None:
        """Tokens of the replica's blocks, known before its first event."""
        held = self._replicas[slot]
        if not held.block:
            self._size(slot, held, block)

    def _size(self, slot: int, held: Held, block: int) -> None:
        if held.block:
            self.sizes[held.block] &= ~(1 << slot)
        held.block = block
        self.sizes[block] = self.sizes.get(block, 0) | 1 << slot

    def empty(self, slot: int, rank: int, *, complete: bool) -> None:
        """A rank's cache is empty (complete), or what it holds has to be learned anew."""
        for (each, _), lane in self._replicas[slot].lanes.items():
            if each == rank:
                lane.empty(complete=complete)

    def apply(self, slot: int, rank: int, batch: Batch) -> None:
        """What one engine step changed."""
        held = self._replicas[slot]
        if (rank, "GPU") not in held.lanes:
            self._lane(slot, held, rank, "GPU")
        for event in batch.events:
            if isinstance(event, Stored):
                if self._counts(slot, held, event):
                    self._lane(slot, held, rank, event.medium).store(event)
            elif isinstance(event, Removed):
                if event.group_idx is None or event.group_idx == held.group:
                    self._lane(slot, held, rank, event.medium).remove(event)
            else:
                self.empty(slot, rank, complete=True)

    def _counts(self, slot: int, held: Held, event: Stored) -> bool:
        kind = event.kv_cache_spec_kind
        if kind is not None and kind not in FULL_ATTENTION:
            return False
        if held.group is None:
            held.group = event.group_idx
        if event.group_idx is not None and event.group_idx != held.group:
            return False
        if not held.sure:
            held.sure = True
            self._size(slot, held, event.block_size)
        if event.block_size != held.block or len(event.token_ids) != held.block * len(
            event.block_hashes
        ):
            held.odd += 1
            return False
        return True

    def _lane(self, slot: int, held: Held, rank: int, medium: str | None) -> Lane:
        key = (rank, medium or "GPU")
        lane = held.lanes.get(key)
        if lane is None:
            lane = held.lanes[key] = Lane({}, 1)
            self._compound |= 1 << slot
        return lane

    # Looking up

    def match(self, chain: Chain, block: int, asked: int) -> list[tuple[float, int]]:
        """(leading tokens held, mask of holders), masks disjoint, of the replicas asked about.

        These must have blocks of `block` tokens, and the chain must be made with such. Tokens on
        slower media count for less.
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
        for slot in slots(compound):
            tokens = self._deepest(self._replicas[slot], chain)
            if tokens:
                found.append((tokens, 1 << slot))
        return found

    def _deepest(self, held: Held, chain: Chain) -> float:
        """The most that one of a replica's ranks has of a chain, on any of its media."""
        best = 0.0
        for rank in {rank for rank, _ in held.lanes}:
            tiers = sorted(
                (
                    (WORTH.get(medium, OTHER_WORTH), lane)
                    for (each, medium), lane in held.lanes.items()
                    if each == rank
                ),
                key=lambda tier: -tier[0],
            )
            worth = 0.0
            for block in chain:
                for share, lane in tiers:
                    if lane.holds(block):
                        worth += share
                        break
                else:
                    break
            best = max(best, worth)
        return best * held.block

    # Requests on their way, and what answers show

    def expect(self, slot: int, chain: Chain) -> Coming:
        """A prompt is sent to a replica: it counts as held there until told or given up."""
        lane = self._replicas[slot].lanes[0, "GPU"]
        return Coming(slot, lane, lane.expect(chain[:MOST_EXPECTED]))

    def give_up(self, coming: Coming) -> None:
        """It failed, or its time is over: only what the engine told of counts."""
        coming.lane.give_up(coming.blocks)
        coming.blocks = []

    def answered(self, slot: int, chain: Chain, predicted: int, cached: int) -> None:
        """An answer's ``cached_tokens`` has come; predicted were expected, in whole blocks."""
        held = self._replicas[slot]
        if not held.block or len(held.lanes) > 1:
            return  # which rank answered is not known
        lane = held.lanes[0, "GPU"]
        blocks = cached // held.block
        if blocks < predicted // held.block:
            lane.doubt(chain[blocks : predicted // held.block])
        if not lane.complete or lane.learned:
            # The last block is computed anew in any case, and need not be missing.
            lane.learn(chain if blocks < len(chain) - 1 else chain[:blocks], blocks)

    # What is known

    def ranks(self, slot: int) -> set[int]:
        """The data-parallel ranks it has."""
        return {rank for rank, _ in self._replicas[slot].lanes}

    def complete(self, slot: int) -> bool:
        """Everything this replica's engine holds was told of."""
        return all(lane.complete for lane in self._replicas[slot].lanes.values())

    def salts_told(self, slot: int) -> bool:
        """Its events tell salted prompts from others."""
        return any(lane.salts_told for lane in self._replicas[slot].lanes.values())

    def placed(self, slot: int) -> int:
        """Tokens the replica's engine is known to hold, copies not counted."""
        held = self._replicas[slot]
        return held.block * sum(lane.placed for lane in held.lanes.values())

    def strays(self, slot: int) -> int:
        """Events about blocks whose history is not known."""
        return sum(lane.strays for lane in self._replicas[slot].lanes.values())
