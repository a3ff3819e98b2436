"""Names of replicas where there is little room."""

from __future__ import annotations

from collections.abc import Sequence


def short_names(names: Sequence[str]) -> list[str]:
    """What is left of names that begin alike: replica-0 and replica-1 are 0 and 1. Cut at what is
    neither letter nor digit, so that ports 8001 and 8002 stay whole."""
    if len(names) < 2:
        return list(names)
    first, last = min(names), max(names)
    alike = 0
    while alike < min(len(first), len(last)) and first[alike] == last[alike]:
        alike += 1
    while alike and first[alike - 1].isalnum():
        alike -= 1
    return [name[alike:] for name in names]
