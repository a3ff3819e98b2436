"""The billing line that Claude Code puts first into the system prompt.

It differs between conversations (a mark of the first message) and requests (`cch=`), so that an
engine which renders it reuses nothing behind it. vLLM leaves it out. For engines that do not, the
router blanks it: what it says is for Anthropic's own API, and the body keeps its length.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_START: Final = b'"x-anthropic-billing-header'
_WITHIN: Final = 256
"""Bytes of a system prompt's JSON in which the line starts: it is the first text there."""
_line = re.compile(rb'("x-anthropic-billing-header:?)([^"\\]*)')


class _System(msgspec.Struct):
    system: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_System).decode


def without_billing(body: bytes) -> bytes:
    """A body of /v1/messages with spaces in place of what the billing line of its system prompt
    says; the same object where there is none."""
    if _START not in body:
        return body
    try:
        system = bytes(_decode(body).system)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # no JSON object: the engine says so
    if _START not in system[:_WITHIN]:
        return body
    blank = _line.sub(lambda found: found[1] + b" " * len(found[2]), system, count=1)
    return body.replace(system, blank, 1)
