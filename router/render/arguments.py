"""Tool calls' arguments, parsed once: an agent sends all of its calls again with each step, and its
template prints them again."""

from __future__ import annotations

import json
from typing import Any


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


class ArgumentsMemory:
    """Two generations of parsed arguments, by their text."""

    __slots__ = ("_limit", "_new", "_old", "_size")

    def __init__(self, limit: int) -> None:
        """limit: characters of JSON; the objects take a few times that."""
        self._limit = limit // 2
        self._new: dict[str, Arguments] = {}
        self._old: dict[str, Arguments] = {}
        self._size = 0

    def parse(self, text: str) -> Arguments:
        """The object; an empty one for what is none, as in vLLM."""
        found = self._new.get(text)
        if found is None:
            found = self._old.get(text)
            if found is None:
                found = _parsed(text)
            self._size += len(text)
            if self._size > self._limit:
                self._old, self._new, self._size = self._new, {}, len(text)
            self._new[text] = found
        return found


def _parsed(text: str) -> Arguments:
    try:
        tree = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return Arguments()
    return Arguments(tree) if isinstance(tree, dict) else Arguments()


known = ArgumentsMemory(8 << 20)
