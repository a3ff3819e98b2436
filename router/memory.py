"""Results that are made once and used again, within a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentMemory(Generic[Key, Value]):
    """Two generations: what was used since the last turn, and what was not. When the first has half
    of the bytes, the second is dropped and the first takes its place. So what is in use stays,
    without an order to maintain."""

    __slots__ = ("_half", "_largest", "_new", "_new_bytes", "_old", "_old_bytes", "_size")

    def __init__(
        self, limit: int, size: Callable[[Key, Value], int], *, largest: int | None = None
    ) -> None:
        """limit: bytes of all entries. size: bytes of one, estimated. largest: a larger entry is
        not kept; half of the limit where not given."""
        self._half = limit // 2
        self._largest = self._half if largest is None else largest
        self._size = size
        self._new: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}
        self._new_bytes = self._old_bytes = 0

    def get(self, key: Key) -> Value | None:
        """What was put there, if it is kept."""
        found = self._new.get(key)
        return self._revive(key) if found is None else found

    def put(self, key: Key, value: Value) -> None:
        """Keep a value that is not None."""
        size = self._size(key, value)
        if key in self._new or size > self._largest:
            return
        if self._new_bytes + size > self._half:
            self._old, self._old_bytes = self._new, self._new_bytes
            self._new, self._new_bytes = {}, 0
        self._new[key] = value
        self._new_bytes += size

    def _revive(self, key: Key) -> Value | None:
        """Move a value of the second generation into the first."""
        found = self._old.pop(key, None)
        if found is not None:
            self._old_bytes -= self._size(key, found)
            self.put(key, found)
        return found

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, estimated."""
        return self._new_bytes + self._old_bytes
