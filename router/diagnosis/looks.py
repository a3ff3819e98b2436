"""What stands where a prompt changed, as far as its form tells."""

from __future__ import annotations

import re
from typing import Final

from router.diagnosis.divergence import Change, Divergence, left_out
from router.diagnosis.fingerprint import GRAIN, Fingerprint
from router.diagnosis.parts import parts_of

REORDERED: Final = "reordered tools"
REASONED: Final = "reasoning left out"
SUMMARY: Final = "a summary"
TEXT: Final = "text"

_MONTH: Final = rb"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_FORMS: Final = (
    ("uuid", rb"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"),
    (
        "time stamp",
        rb"\d{4}[-/]\d\d[-/]\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?)?|\d\d:\d\d:\d\d|"
        rb"\b\d\d:\d\d\b|\b1[5-9]\d{8}(?:\.\d+|\d{3})?\b|"
        rb"\b(?:\d{1,2} )?" + _MONTH + rb"\.? \d{1,2}(?:,? \d{4})?\b",
    ),
    ("nonce", rb"\b(?=[0-9a-z_-]*\d)(?=[0-9a-z_-]*[a-z])[0-9a-z_-]{5,}\b"),
    ("counter", rb"\b\d{1,9}\b"),
)
_SEARCHES: Final = tuple((name, re.compile(form, re.IGNORECASE)) for name, form in _FORMS)
_BEFORE: Final = 40
"""Bytes before the place in which a form may begin that reaches to it."""

WORDS: Final = (*(name for name, _ in _FORMS), REORDERED, REASONED, SUMMARY, TEXT)
"""Every answer, which are the values of the label ``looks_like``."""


def looks_like(text: bytes, new: Fingerprint, old: Fingerprint, divergence: Divergence) -> str:
    """A word of `WORDS` for what stands at the place of a difference; empty without a place."""
    at = divergence.index
    if at < 0:
        return ""
    if divergence.change == Change.TOOLS and new.tool_set and new.tool_set == old.tool_set:
        return REORDERED
    if divergence.change == Change.COMPACTED:
        return SUMMARY
    if left_out(new.tags, old.tags, at):
        return REASONED
    # The change is somewhere in one grain, so that what begins before or in it is looked at.
    parts = parts_of(new)
    start, end = parts.starts[at], parts.ends[at]
    place = divergence.common
    for name, search in _SEARCHES:
        for found in search.finditer(
            text, max(start, place - _BEFORE), min(end, place + 2 * GRAIN)
        ):
            if found.end() > place and found.start() < place + GRAIN:
                return name
    return TEXT
