"""Tool calls' arguments, parsed once: an agent sends all of its calls again with each step, and its
template prints them again."""

from __future__ import annotations

import json
from typing import Any

from router.memory import RecentMemory


class Arguments(dict[str, Any]):
    """Arguments as an object, and as the template's ``tojson`` prints them. Not to be changed."""

    __slots__ = ("_printed",)
    _printed: str

    def printed(self) -> str:
        """As JSON, in transformers' form."""
        try:
            return self._printed
        except AttributeError:
            self._printed = json.dumps(self, ensure_ascii=False)
            return self._printed


def parse_arguments(text: str) -> Arguments:
    """Parse a call's arguments into an object.

    Anything that is not an object gives an empty one, as in vLLM.
    """
    found = MEMORY.get(text)
    if found is None:
        found = _parsed(text)
        MEMORY.put(text, found)
    return found


def _parsed(text: str) -> Arguments:
    try:
        tree = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return Arguments()
    return Arguments(tree) if isinstance(tree, dict) else Arguments()


def _entry_bytes(text: str, _: Arguments) -> int:
    return PARSED_SIZE * len(text)


PARSED_SIZE = 4
"""Bytes that a parsed object and its text take, for each character of the text."""

MEMORY: RecentMemory[str, Arguments] = RecentMemory(32 << 20, _entry_bytes)
"""Arguments that the renderers of this process have already parsed."""
