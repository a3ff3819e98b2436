"""A prompt's parts by name: which message they are of, and what they are in it."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Final

import msgspec

from router.diagnosis.fingerprint import Fingerprint
from router.prompt.tags import (
    CALL,
    DOCUMENTS,
    ITEM,
    MEDIA,
    MESSAGE,
    NAME,
    OTHER,
    REASONING,
    RESULT,
    RESULT_END,
    TASK,
    TEXT,
    TOOLS,
)

_LEADING: Final = (b'"system"', b'"developer"')


class Parts(msgspec.Struct, frozen=True, gc=False):
    """A prompt's parts, taken out of its fingerprint once. Offsets in canonical bytes."""

    starts: array[int]
    ends: array[int]
    tags: bytes
    hashes: array[int]


def parts_of(prompt: Fingerprint) -> Parts:
    """The parts of a prompt."""
    starts = prompt.starts
    ends = starts[1:]
    ends.append(prompt.size)
    return Parts(starts, ends, prompt.tags, prompt.hashes)


def messages(tags: bytes, *, items: bool) -> int:
    """The number of messages; of the Responses API, of items."""
    if not items:
        return tags.count(MESSAGE)
    found = Counter(tags)
    return found[MESSAGE] + found[CALL] + found[RESULT] + found[REASONING] + found[ITEM]


_ITEMS: Final = frozenset((MESSAGE, CALL, RESULT, REASONING, ITEM))
_WORDS: Final = {
    TEXT: "part",
    MEDIA: "medium",
    CALL: "tool call",
    RESULT: "tool result",
    REASONING: "reasoning",
    NAME: "name",
    OTHER: "part",
    ITEM: "item",
    TASK: "task",
}


def name_part(text: bytes, new: Parts, at: int, *, items: bool) -> tuple[str, bool]:
    """A part in words, and whether it is of the system prompt.

    Messages count from 1 behind the system prompt; parts of a kind count within their message.
    """
    tags, starts = new.tags, new.starts
    tag = tags[at]
    if tag == TOOLS:
        return "tools", False
    if tag == DOCUMENTS:
        return "documents", False
    if tag == 0:
        return "prompt", False
    number, first, system = 0, at, False
    for each in range(at + 1):
        begins = tags[each] in _ITEMS if items else tags[each] == MESSAGE
        if not begins:
            continue
        role = text[starts[each] + 1 : starts[each] + 12]
        system = tags[each] == MESSAGE and not number and role.startswith(_LEADING)
        first = each
        if not system:
            number += 1
    if system:
        return "system", True
    if tag == MESSAGE:
        return f"message {number}", False
    word = _WORDS.get(tag, "part")
    if tag in (TEXT, MEDIA, OTHER) and in_result(text, new, at, first):
        word = "tool result"
        tag = RESULT
    if items and at == first:
        return f"message {number} {word}", False
    count = 1 + sum(_same_kind(text, new, each, first, tag) for each in range(first, at))
    return f"message {number} {word} {count}", False


def _same_kind(text: bytes, new: Parts, each: int, first: int, tag: int) -> bool:
    if new.tags[each] != tag:
        return False
    return tag != TEXT or not in_result(text, new, each, first)


def in_result(text: bytes, new: Parts, at: int, first: int) -> bool:
    """Whether a text is what a tool said. first: the first part of its message."""
    start = new.starts[first]
    if new.tags[first] == MESSAGE and text[start + 1 : start + 7] == b'"tool"':
        return True
    for each in range(at - 1, first - 1, -1):
        tag = new.tags[each]
        if text[new.starts[each + 1] - 1] == RESULT_END:
            return False
        if tag == RESULT:
            return True
    return False
