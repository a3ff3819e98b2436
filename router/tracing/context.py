"""The header ``traceparent``, by which traces go from one program to the next.

Format: https://www.w3.org/TR/trace-context/ (version 00). A header that is wrong counts as none.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

HEADER: Final = b"traceparent"

# Later versions may have more behind the flags; what stands before them stays.
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16
_SAMPLED: Final = 1


class TraceContext(msgspec.Struct, frozen=True, gc=False):
    """Where a request stands in its trace. Ids are lower-case hex."""

    trace_id: bytes
    span_id: bytes
    """The span of who sent it."""
    sampled: bool


def parse(value: bytes) -> TraceContext | None:
    """What a header says; None where it says nothing valid."""
    found = _FORM.fullmatch(value.strip(b" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == b"ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    if version == b"00" and more is not None:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))
