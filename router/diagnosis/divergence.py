"""Where a prompt parts from an earlier one, and what kind of change that is."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from router.diagnosis.fingerprint import GRAIN, Fingerprint, agree, common_blocks
from router.diagnosis.parts import Parts, messages, name_part, parts_of
from router.prompt.spans import SPANS
from router.prompt.tags import ITEM, MEDIA, MESSAGE, NAME, OTHER, REASONING, TEXT, TOOLS


class Change:
    """What kind of change a prompt's first difference is."""

    NONE: Final = ""
    """The prompt begins with the whole earlier one, or is a beginning of it."""
    MODEL: Final = "model_changed"
    SALT: Final = "salted_apart"
    """Another ``cache_salt``: engines share no block between salts."""
    ARGUMENTS: Final = "arguments_changed"
    """Something else that changes the whole prompt: a template argument, a chat template."""
    TOOLS: Final = "tools_changed"
    SYSTEM: Final = "system_changed"
    MESSAGES: Final = "messages_changed"
    COMPACTED: Final = "context_compacted"
    """Earlier messages were replaced by a summary, or cut out."""
    NEW: Final = "new_conversation"
    """Nothing behind the difference was in the earlier prompt: it is no later step of it."""


class Divergence(msgspec.Struct, frozen=True, gc=False):
    """The first difference of a prompt from an earlier one."""

    change: str
    """A word of `Change`."""
    part: str
    """Which part of the prompt it is in, in words; empty without a difference."""
    place: int
    """Canonical bytes from the part's beginning, down to `GRAIN`; 0 where the whole part is
    another."""
    common: int
    """Canonical bytes that both prompts begin with, down to `GRAIN`."""
    index: int = -1
    """Of the part in the new prompt; -1 without one."""
    stable: bool = False
    """The part is all that changed: what followed it in the earlier prompt follows here too."""


# Smaller parts ("ok"), and these, are in every prompt: finding one again says nothing.
_TELLING_BYTES: Final = 8
_SAY_NOTHING: Final = frozenset((MESSAGE, NAME, TOOLS))
_SAID: Final = frozenset((TEXT, REASONING, MEDIA, OTHER, ITEM))
_SAID_BYTES: Final = 24
_SUMMARY: Final = re.compile(rb"summar|condens|compact|continued from a previous", re.IGNORECASE)
_SUMMARY_WITHIN: Final = 4096
_FEWER_MESSAGES: Final = 3


def diverge(
    text: bytes, new: Fingerprint, old: Fingerprint, *, items: bool, named: bool
) -> Divergence:
    """The first difference of `new` from `old`.

    text: of the new prompt, empty where `new` is known to begin with all of `old`. items: it is of
    the Responses API, whose calls and results are messages of their own. named: the client says
    that the one follows the other.
    """
    if new.model != old.model:
        return Divergence(Change.MODEL, "model", 0, 0)
    if new.arguments != old.arguments and new.chain[:1] != old.chain[:1]:
        return _arguments(new, old)
    blocks = common_blocks(new.chain, old.chain)
    grains = agree(new.grains, old.grains, SPANS[blocks] // GRAIN)
    common = grains * GRAIN
    mine, others = parts_of(new), parts_of(old)
    at = _first_other(mine, others)
    # A text without tags is one part: one that was cut short is told by its grains alone.
    cut = mine.tags == b"\x00" and new.size <= old.size and common == new.size // GRAIN * GRAIN
    if at < 0 or cut:
        return Divergence(Change.NONE, "", 0, min(new.size, old.size))
    start = mine.starts[at]
    common = min(max(common, start), new.size, old.size)
    part, leading = name_part(text, mine, at, items=items)
    # Also where it is short: what the conversation began with.
    later = (new.first == old.first and mine.hashes[at] != new.first) or _later(mine, others, at)
    if left_out(mine.tags, others.tags, at):
        part = " ".join((*part.split()[:2], "reasoning"))
        return Divergence(Change.MESSAGES, part, 0, common, at, stable=later)
    change = _change(text, mine, others, at, leading=leading, later=later, named=named, items=items)
    return Divergence(change, part, common - start, common, at, stable=later)


def _arguments(new: Fingerprint, old: Fingerprint) -> Divergence:
    """Something beside the messages is another, so that no block is shared."""
    mine, others = set(new.arguments), set(old.arguments)
    names = sorted({each.partition(b"=")[0] for each in mine ^ others})
    if names == [b"salt"]:
        return Divergence(Change.SALT, "salt", 0, 0)
    # A client chooses them, and they go into headers and logs.
    words = [
        _ODD.sub(b"?", name.removeprefix(b"kwargs:"))[:_LONGEST_NAME].decode()
        for name in names
        if name not in (b"salt", b"head")
    ]
    named = ", ".join(words[:_MOST_NAMES])
    return Divergence(Change.ARGUMENTS, f"template argument {named}".strip(), 0, 0)


_ODD: Final = re.compile(rb"[^A-Za-z0-9_.-]")
_LONGEST_NAME: Final = 40
_MOST_NAMES: Final = 4


def _first_other(new: Parts, old: Parts) -> int:
    """The first part that differs; -1 where one prompt's parts begin with all of the other's."""
    mine, others = new.hashes, old.hashes
    count = min(len(mine), len(others))
    if mine[:count] == others[:count]:
        return -1
    return next(at for at in range(count) if mine[at] != others[at])


def _later(new: Parts, old: Parts, at: int) -> bool:
    """Whether something that was said behind the difference stands in both prompts.

    Calls do not count: engines and agents number them, so that two conversations may have the same.
    """
    others = set(old.hashes[at + 1 :])
    return any(
        new.hashes[each] in others
        and new.ends[each] - new.starts[each] >= _SAID_BYTES
        and new.tags[each] in _SAID
        for each in range(at + 1, len(new.hashes))
    )


def left_out(new: bytes, old: bytes, at: int) -> bool:
    """Whether reasoning stood where the part now is, and is gone: by the client or the template.

    new, old: the tags of both prompts.
    """
    return at < len(old) and old[at] == REASONING != new[at]


def _change(
    text: bytes,
    new: Parts,
    old: Parts,
    at: int,
    *,
    leading: bool,
    later: bool,
    named: bool,
    items: bool,
) -> str:
    fresh = not named and not later
    if new.tags[at] == TOOLS or (old.tags[at] == TOOLS and old.hashes[at] not in new.hashes):
        return Change.NEW if fresh else Change.TOOLS
    if leading:
        return Change.NEW if fresh else Change.SYSTEM
    if _compacted(text, new, old, at, items=items):
        return Change.COMPACTED
    if fresh and not _said_before(text, new, at):
        return Change.NEW
    return Change.MESSAGES


def _said_before(text: bytes, new: Parts, at: int) -> bool:
    """Whether the user had said something before this part: the conversation is the same one."""
    return any(
        tag == MESSAGE and text[start + 1 : start + 8] == b'"user"\x02'
        for start, tag in zip(new.starts[: max(at - 1, 0)], new.tags, strict=False)
    )


def _compacted(text: bytes, new: Parts, old: Parts, at: int, *, items: bool) -> bool:
    """Whether messages were replaced by less, or cut out, rather than edited.

    Signs of it: an item that says so; the part that stands here now stood further back before; or
    far fewer messages, with a summary in the place of the old ones.
    """
    start = new.starts[at]
    if items and text[start + 1 : start + 12] == b'"compaction':
        return True
    if _moved_up(new, old, at):
        return True
    before, after = messages(old.tags, items=items), messages(new.tags, items=items)
    if after > before - _FEWER_MESSAGES:
        return False
    return _SUMMARY.search(text, start, start + _SUMMARY_WITHIN) is not None


def tells_summary(text: bytes, new: Fingerprint) -> bool:
    """Whether a prompt seems to begin with the summary of a conversation. True too often."""
    second = new.shared.tags.find(MESSAGE, 1)
    start = new.shared.starts[second] if second >= 0 else 0
    said = text[start : start + _SUMMARY_SOON]
    return any(word in said for word in _SUMMARY_WORDS)


_SUMMARY_SOON: Final = 400
_SUMMARY_WORDS: Final = (b"ummar", b"SUMMARY", b"ondens", b"ompact", b"continued from a previous")


def _moved_up(new: Parts, old: Parts, at: int) -> bool:
    """Whether parts from the difference on stood further back in the earlier prompt."""
    mine, others = new.hashes, old.hashes
    where = {value: place for place, value in enumerate(others)}
    for each in range(at, len(mine)):
        found = where.get(mine[each], -1)
        if found <= each or new.tags[each] in _SAY_NOTHING:
            continue
        # A part may be there twice: it has moved if it does not stay, and the next one moved too.
        stays = each < len(others) and others[each] == mine[each]
        last = each + 1 == len(mine) or found + 1 == len(others)
        telling = new.ends[each] - new.starts[each] >= _TELLING_BYTES
        if telling and not stays and (last or mine[each + 1] == others[found + 1]):
            return True
    return False
