"""What was probably meant by a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LIKE = 0.6
"""How much of two names must be alike: `rum` is `run`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ ", did you mean ...?", or nothing where no name is like it."""
    by_plain = {_plain(each): each for each in known}
    found = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=LIKE)
    return f", did you mean {by_plain[found[0]]}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
