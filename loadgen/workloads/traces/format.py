"""What a format is: how it is known, and who reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from loadgen.workloads.traces.recorded import Reading, Recording
from loadgen.workloads.traces.source import Kind, Source

Reader = Callable[[Source, Reading], Iterator[Recording]]
JSON: tuple[Kind, ...] = ("jsonl", "json list")


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """One format of traces."""

    name: str
    title: str
    """For people."""
    kinds: tuple[Kind, ...]
    needs: tuple[tuple[str, ...], ...]
    """Fields that a record of it has, with dots for those within others; of a group any one."""
    read: Reader
    times: tuple[str, ...] = ()
    """Fields whose presence means that requests have times of their own."""
    check: Callable[[dict[str, Any]], bool] = lambda _: True
    """Further signs in a record that has all fields."""
    check_said: str = ""
    """What the check wants, for a message."""

    def fits(self, source: Source) -> bool:
        """A record among the first ones is of this format."""
        return source.kind in self.kinds and any(
            not self.missing(record) and self.check(record) for record in source.first
        )

    def missing(self, record: dict[str, Any]) -> list[str]:
        """Fields that a record lacks."""
        return [
            " or ".join(group) for group in self.needs if not any(has(record, f) for f in group)
        ]

    def lacks(self, source: Source) -> list[str]:
        """What the record that comes nearest lacks; all there is for another kind of file."""
        if source.kind not in self.kinds or not source.first:
            return [" or ".join(group) for group in self.needs]
        best = min((self.missing(record) for record in source.first), key=len)
        return best or [self.check_said]

    def timed(self, source: Source) -> bool:
        """Its requests have times."""
        return any(has(record, field) for record in source.first for field in self.times)


def has(record: Any, field: str) -> bool:
    """A record has a field, perhaps within others, that is not null."""
    for name in field.split("."):
        if not isinstance(record, dict) or record.get(name) is None:
            return False
        record = record[name]
    return True


def list_of(value: Any, *fields: str) -> bool:
    """A list of objects that all have these fields."""
    return isinstance(value, list) and all(
        isinstance(each, dict) and all(field in each for field in fields) for each in value
    )
