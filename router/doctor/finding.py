"""What was found wrong, and what mends it."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, or could be better."""

    wrong: bool
    """It costs hits or safety. Otherwise it is worth knowing."""
    where: str
    """The replica's URL, or "between replicas"."""
    what: str
    fix: str


def wrong(where: str, what: str, fix: str) -> Finding:
    """Something that has to be mended."""
    return Finding(True, where, what, fix)


def note(where: str, what: str, fix: str) -> Finding:
    """Something worth knowing."""
    return Finding(False, where, what, fix)
