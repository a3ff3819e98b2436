"""How hosted APIs tell why a prompt missed their cache, served here in the same fields.

Anthropic's messages API takes ``diagnostics.previous_message_id`` and answers ``diagnostics`` in
the message. OpenAI's responses API takes ``prompt_cache_options.comparison_response_id`` and
answers ``prompt_cache_diagnostics`` in the response. The words are those of the types in the
packages anthropic 2.14 and openai 3.57.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from router.diagnosis.divergence import Change
from router.diagnosis.verdict import ANTHROPIC, Diagnosis, missed_by_change, shared_tokens

MEMBERS: Final = {ANTHROPIC: b'"diagnostics":', "openai": b'"prompt_cache_diagnostics":'}
"""The member of the answer, by how the client asks."""

_ANTHROPIC: Final = {
    Change.MODEL: "model_changed",
    Change.SYSTEM: "system_changed",
    Change.TOOLS: "tools_changed",
    Change.MESSAGES: "messages_changed",
    Change.COMPACTED: "messages_changed",
    Change.NEW: "messages_changed",
}
"""What is not here (arguments, a salt) is `unavailable`, as the type's text says."""

_OPENAI: Final = {
    Change.MODEL: "model_changed",
    Change.SYSTEM: "input_changed",
    Change.TOOLS: "tools_changed",
    Change.MESSAGES: "input_changed",
    Change.COMPACTED: "context_compacted",
    Change.NEW: "input_changed",
}

_encode = msgspec.json.Encoder().encode
_UNAVAILABLE: Final = {"type": "unavailable"}


def member(diagnosis: Diagnosis, tokens: int, cached: int, block: int) -> bytes:
    """The member of the answer, name and value.

    tokens, cached: the request's prompt tokens as the engine counted them, 0 and -1 while not
    known. block: tokens of the engine's blocks.
    """
    if diagnosis.field == ANTHROPIC:
        value = _anthropic(diagnosis, tokens, cached, block)
    else:
        value = _openai(diagnosis, tokens, cached, block)
    return MEMBERS[diagnosis.field] + _encode(value)


def _anthropic(diagnosis: Diagnosis, tokens: int, cached: int, block: int) -> Any:
    if diagnosis.missing:
        return {"cache_miss_reason": {"type": "previous_message_not_found"}}
    divergence = diagnosis.divergence
    if not diagnosis.named or divergence is None or divergence.change == Change.NONE:
        return None
    kind = _ANTHROPIC.get(divergence.change)
    if kind is None:
        return {"cache_miss_reason": _UNAVAILABLE}
    missed = missed_by_change(diagnosis, tokens, cached, block)
    return {"cache_miss_reason": {"cache_missed_input_tokens": missed, "type": kind}}


def _openai(diagnosis: Diagnosis, tokens: int, cached: int, block: int) -> Any:
    if diagnosis.missing:
        return {"type": "comparison_response_not_found"}
    divergence = diagnosis.divergence
    if not diagnosis.named or divergence is None:
        return _UNAVAILABLE
    if divergence.change == Change.NONE:
        # What was the same and is gone is nobody's change: no word of theirs tells that.
        return {"type": "cache_hit"} if cached != 0 else _UNAVAILABLE
    kind = _OPENAI.get(divergence.change)
    if kind is None and "reasoning_effort" in divergence.part:
        kind = "reasoning_effort_changed"
    if kind is None:
        return _UNAVAILABLE
    return {
        "cache_missed_tokens": missed_by_change(diagnosis, tokens, cached, block),
        "reason": kind,
        "type": "cache_miss",
        "comparison_reusable_tokens": int(shared_tokens(diagnosis, tokens, cached, block)),
    }


def spliced(value: bytes, member: bytes) -> bytes:
    """A JSON object with one more member, the last one, so that it counts where it is there
    already."""
    end = value.rindex(b"}")
    comma = b"" if value[:end].rstrip().endswith(b"{") else b","
    return value[:end] + comma + member + value[end:]
