"""What a body says of its request's priority, in the words of several engines and APIs."""

from __future__ import annotations

from typing import Final

import msgspec

from router.prompt.canonical import ABSENT, Head, words


class _AgentHints(msgspec.Struct, gc=False):
    priority: float = 0.0


class _Nvext(msgspec.Struct, gc=False):
    agent_hints: _AgentHints | None = None


_decode_nvext = msgspec.json.Decoder(_Nvext).decode
_decode_number = msgspec.json.Decoder(float).decode
_TIERS: Final = {"priority": -1, "flex": 1}


def asked_priority(head: Head) -> int | None:
    """-1 high, 1 low; None when it says nothing, or normal."""
    asked = 0.0
    try:
        if head.priority is not ABSENT:
            asked = _decode_number(head.priority)  # vLLM: the least goes first
        elif head.nvext is not ABSENT:
            hints = _decode_nvext(head.nvext).agent_hints
            asked = 0.0 if hints is None else -hints.priority  # Dynamo: the largest does
        else:
            asked = _TIERS.get(words(head.service_tier), 0)
    except msgspec.DecodeError:
        return None  # the engine says what is wrong with it
    return -1 if asked < 0.0 else 1 if asked > 0.0 else None
