"""A fault or remark that the doctor reports, and its fix."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One fault, or one remark."""

    wrong: bool
    """True for a fault, which costs cache hits or safety. False for a remark."""
    where: str
    """The replica's URL, or "between replicas"."""
    what: str
    fix: str


def wrong(where: str, what: str, fix: str) -> Finding:
    """A fault that needs to be fixed."""
    return Finding(True, where, what, fix)


def note(where: str, what: str, fix: str) -> Finding:
    """A remark that needs no change."""
    return Finding(False, where, what, fix)
