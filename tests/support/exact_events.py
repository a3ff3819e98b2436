"""Events and payloads by hand, and what the index must be equal to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from router.kv_events.decode import Batch, Cleared, Removed, Stored

BLOCK = 4


def stored(
    names: Sequence[int | bytes],
    parent: int | bytes | None,
    tokens: Sequence[int],
    **more: Any,
) -> Stored:
    return Stored(list(names), parent, list(tokens), more.pop("block_size", BLOCK), **more)


def batch(*events: Stored | Removed | Cleared, rank: int = 0) -> Batch:
    return Batch(0.0, list(events), rank)


def packed(*events: dict[str, Any] | list[Any]) -> bytes:
    return msgspec.msgpack.encode([1.0, list(events), 0])


class NaiveHeld:
    """One cache as lists of copies: (engine's name, all tokens up to the block's end)."""

    def __init__(self) -> None:
        self.copies: list[tuple[int | bytes, tuple[Any, ...]]] = []

    def prefix(self, name: int | bytes) -> tuple[Any, ...] | None:
        return next((prefix for each, prefix in self.copies if each == name), None)

    def store(self, event: Stored) -> None:
        parent = event.parent_block_hash
        before: tuple[Any, ...] | None
        if parent is None:
            extra = (event.extra_keys or [None])[0] or ()
            before = (tuple(extra), event.lora_name)
        else:
            before = self.prefix(parent)
        for place, name in enumerate(event.block_hashes):
            size = event.block_size
            tokens = tuple(event.token_ids[place * size : (place + 1) * size])
            if before is not None:
                before = (*before, tokens)
            self.copies.append((name, before if before is not None else ("?",)))

    def remove(self, event: Removed) -> None:
        for name in event.block_hashes:
            for copy in self.copies:
                if copy[0] == name:
                    self.copies.remove(copy)
                    break

    def depth(self, tokens: Sequence[int], size: int, head: tuple[Any, ...] = ((), None)) -> int:
        there = {prefix for _, prefix in self.copies}
        prefix: tuple[Any, ...] = head
        depth = 0
        for at in range(0, len(tokens) - size + 1, size):
            prefix = (*prefix, tuple(tokens[at : at + size]))
            if prefix not in there:
                break
            depth += size
        return depth
