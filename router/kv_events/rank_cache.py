"""The blocks that one engine holds on one medium."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import xxhash

from router.kv_events.decode import EngineHash, Removed, Stored
from router.kv_events.token_chain import TOKEN_BYTES, seed
from router.types import Chain

UNPLACED = 0
"""Stands for the router's hash of a block whose parent is not known: it cannot be found, only
removed."""


class RankCache:
    """Keeps one bit of a table of masks in step with one cache.

    A block is found (its bit is set) while one of three things holds: the engine has told of a copy
    that is not removed; else it was learned from an answer, or a request that will make it is on
    its way, or both. The mutable state is these three, and what the table has of this lane's bit.
    """

    __slots__ = (
        "_adapters",
        "_bit",
        "_blocks",
        "_copies",
        "_masks",
        "_twins",
        "complete",
        "expected",
        "learned",
        "parts",
        "placed",
        "salts_told",
        "strays",
    )

    def __init__(self, masks: dict[int, int], bit: int, parts: int = 1) -> None:
        """`parts` is the number of GPU blocks that make one block of this medium."""
        self.parts = parts
        self._masks = masks
        self._bit = bit
        self._blocks: dict[EngineHash, int] = {}
        """The engine's hash -> the router's, UNPLACED when not known."""
        self._adapters: dict[EngineHash, str] = {}
        """The engine's hash -> the adapter's name, for blocks of one."""
        self._copies: dict[EngineHash, int] = {}
        """The engine's hash -> copies, for blocks stored more than once."""
        self._twins: dict[int, int] = {}
        """Blocks the engine holds under several names -> how many names beside the first."""
        self.expected: dict[int, int] = {}
        """Blocks that requests on their way will make -> how many of these requests."""
        self.learned: dict[int, None] = {}
        """Blocks an answer showed to be there, of which no event told; least recent first."""
        self.complete = False
        """Every block the cache holds was told of."""
        self.placed = 0
        """Blocks told of whose place is known."""
        self.strays = 0
        """Events about blocks whose history is not known."""
        self.salts_told = False
        """Its events tell which prompts were salted; those of older engines do not."""

    def __len__(self) -> int:
        """The number of distinct blocks that the engine has reported."""
        return len(self._blocks)

    def holds(self, block: int) -> bool:
        """Whether a block counts as held."""
        return bool(self._masks.get(block, 0) & self._bit)

    def place(self, name: EngineHash | None) -> int:
        """The router's hash of a block; UNPLACED when the block or its place is not known."""
        return UNPLACED if name is None else self._blocks.get(name, UNPLACED)

    def store(self, event: Stored, parent: int = UNPLACED) -> None:
        """Blocks entered the cache. One without a known parent is kept so that it can be removed,
        but no prompt finds it.

        parent: the router's hash of the block before, where another of the replica's caches has it.
        """
        blocks, copies, masks, bit = self._blocks, self._copies, self._masks, self._bit
        extra = event.extra_keys
        if extra is not None:
            self.salts_told = True
        if event.parent_block_hash is None:
            own = _first(event)
        else:
            own = blocks.get(event.parent_block_hash) or parent
            if own == UNPLACED:
                self.strays += 1
        parts = self.parts
        width = event.block_size // parts * TOKEN_BYTES
        tokens = memoryview(array("I", event.token_ids)).cast("B")
        media = extra is not None and any(_media(keys) for keys in extra)
        xxh3 = xxhash.xxh3_64_intdigest
        expected, learned = self.expected, self.learned
        at = 0
        for place, name in enumerate(event.block_hashes):
            if own:
                for _ in range(parts):
                    own = xxh3(tokens[at : at + width], own)
                    at += width
                if media and extra is not None and place < len(extra) and _media(extra[place]):
                    # Events do not say in which part of a larger block the media is.
                    own = xxh3(repr(_media(extra[place])).encode(), own) if parts == 1 else UNPLACED
            had = blocks.get(name)
            if had is not None:
                copies[name] = copies.get(name, 1) + 1
                if had or not own:
                    continue  # place known, or not known now either
            blocks[name] = own
            if not own:
                continue
            if event.lora_name:
                self._adapters[name] = event.lora_name
            self.placed += 1
            mask = masks.get(own, 0)
            if not mask & bit:
                masks[own] = mask | bit
            elif own in expected:
                del expected[own]
            elif own in learned:
                del learned[own]
            else:
                self._twins[own] = self._twins.get(own, 0) + 1

    def copy(self, names: Sequence[EngineHash], source: RankCache) -> int:
        """Blocks entered the cache of which only the names are told, as connectors do; `source`, a
        cache of the same engine, knows their place. Returns how many are known there or here.

        Connectors name a block by the whole hash also where the engine's own events have the last
        eight bytes of it as a number (vLLM's `maybe_convert_block_hash`).
        """
        blocks, masks, bit = self._blocks, self._masks, self._bit
        self.salts_told = source.salts_told  # a block's name covers its salt
        known = 0
        for name in names:
            if blocks.get(name):
                known += 1
                continue
            own = source.place(name)
            if not own and isinstance(name, bytes) and len(name) >= 8:
                own = source.place(int.from_bytes(name[-8:], "big"))
            blocks[name] = own
            if not own:
                self.strays += 1
                continue
            known += 1
            self.placed += 1
            mask = masks.get(own, 0)
            if mask & bit:
                self._twins[own] = self._twins.get(own, 0) + 1
            else:
                masks[own] = mask | bit
        return known

    def remove(self, event: Removed) -> None:
        """Remove one copy of each of these blocks."""
        blocks, copies = self._blocks, self._copies
        for name in event.block_hashes:
            if copies and name in copies:
                left = copies[name] - 1
                if left > 1:
                    copies[name] = left
                else:
                    del copies[name]
                continue
            own = blocks.pop(name, None)
            if own is None:
                self.strays += 1
                if self.learned:
                    # Which one cannot be known. Engines evict what was used least recently.
                    self._unlearn(next(iter(self.learned)))
            elif own:
                self._let_go(name, own)

    def _let_go(self, name: EngineHash, own: int) -> None:
        """Forget the name of a block that is gone or cannot be found."""
        if self._adapters:
            self._adapters.pop(name, None)
        self.placed -= 1
        others = self._twins.get(own, 0)
        if others > 1:
            self._twins[own] = others - 1
        elif others:
            del self._twins[own]
        else:
            self._clear(own)

    def replaces(self, event: Stored) -> bool:
        """An adapter's first block is there under another name: engines name it by the adapter's
        name and path, so it is another adapter of that name."""
        extra = event.extra_keys
        if not extra or _media(extra[0]) or event.block_hashes[0] in self._blocks:
            return False
        tokens = array("I", event.token_ids[: event.block_size]).tobytes()
        own: int = xxhash.xxh3_64_intdigest(tokens, _first(event))
        return self.holds(own) and own not in self.expected and own not in self.learned

    def forget_adapter(self, adapter: str) -> None:
        """Its name stands for another one: the blocks of the old one are only there to be
        removed. What was learned may be among them."""
        for name in [name for name, each in self._adapters.items() if each == adapter]:
            own, self._blocks[name] = self._blocks[name], UNPLACED
            self._let_go(name, own)
        for own in list(self.learned):
            self._unlearn(own)

    def empty(self, *, complete: bool) -> None:
        """Forget all blocks.

        With `complete` the cache is empty; otherwise its contents are unknown.
        """
        for own in self._blocks.values():
            if own:
                self._clear(own)
        for own in self.learned:
            if own not in self.expected:
                self._clear(own)
        self._blocks = {}
        self._adapters = {}
        self._copies = {}
        self._twins = {}
        self.learned = {}
        self.placed = self.strays = 0
        self.complete = complete

    def expect(self, chain: Sequence[int]) -> list[int]:
        """A request that will make these blocks is on its way. Returns those not held so far."""
        masks, bit, expected = self._masks, self._bit, self.expected
        pending = []
        for own in chain:
            mask = masks.get(own, 0)
            if not mask & bit:
                masks[own] = mask | bit
                expected[own] = 1
                pending.append(own)
            elif own in expected:
                expected[own] += 1
                pending.append(own)
        return pending

    def give_up(self, pending: Iterable[int]) -> None:
        """A request that was expected to make these blocks will not, or its time is over."""
        expected, learned = self.expected, self.learned
        for own in pending:
            left = expected.get(own)
            if left is None:
                continue
            if left > 1:
                expected[own] = left - 1
                continue
            del expected[own]
            if own not in learned:
                self._clear(own)

    def learn(self, chain: Chain, held: int) -> None:
        """An answer has shown that the first `held` blocks of a chain were there, and no more."""
        masks, bit, learned = self._masks, self._bit, self.learned
        for own in reversed(chain[held:]):
            if own in learned:
                self._unlearn(own)
        if self.complete:
            return
        # Tail first: of one chain an engine evicts the last blocks first.
        for own in reversed(chain[:held]):
            if own in learned:
                del learned[own]
            elif masks.get(own, 0) & bit and own not in self.expected:
                continue
            learned[own] = None
            masks[own] = masks.get(own, 0) | bit

    def doubt(self, missing: Iterable[int]) -> None:
        """An answer has shown that these blocks, thought to be there, had to be made anew.

        A block counted twice while there is one copy would stay for ever: what the engine says
        twice of one copy (``kv_cache_report_mode``) is taken back here.
        """
        gone = set(missing)
        for name in [name for name in self._copies if self._blocks[name] in gone]:
            del self._copies[name]

    def _unlearn(self, own: int) -> None:
        del self.learned[own]
        if own not in self.expected:
            self._clear(own)

    def _clear(self, own: int) -> None:
        masks = self._masks
        mask = masks.get(own, 0) & ~self._bit
        if mask:
            masks[own] = mask
        else:
            masks.pop(own, None)


def _media(keys: list[Any] | None) -> list[Any]:
    """The extra keys of a block that name media: adapter and salt are strings, media are not."""
    return [key for key in keys if not isinstance(key, str)] if keys else []


def _first(event: Stored) -> int:
    """The hash that the first block of a prompt is chained to."""
    adapter = event.lora_name or (f"#{event.lora_id}" if event.lora_id else "")
    words = []
    if event.extra_keys and event.extra_keys[0]:
        words = [key for key in event.extra_keys[0] if isinstance(key, str)]
        if event.lora_name and words:
            words = words[1:]
    return seed(adapter, "\x00".join(words))
