"""What a finding is called, and what mends it."""

from __future__ import annotations

from typing import Final

VOLATILE: Final = "volatile_prefix"
"""A span at the prompt's beginning that is another in each request, while the rest stays."""

_VOLATILE: Final = {
    "time stamp": "Put the time at the end of the last message, or round it to a day.",
    "uuid": "Take the id out of the prompt, or send it in a header or in `metadata`.",
    "counter": "Take the count out of the prompt's beginning, or put it into the last message.",
    "nonce": "Take the random text out of the prompt; where a salt is meant, use `cache_salt`.",
    "reordered tools": "Send the tools in one order: sort them by name before each request.",
}
_REASONS: Final = {
    "model_changed": "Keep one model within a session: replicas share no cache between models.",
    "salted_apart": "Use one `cache_salt` for all requests that may share a cache.",
    "arguments_changed": "Keep template arguments (reasoning effort, chat template) as they are "
    "within a session.",
    "tools_changed": "Send the same tools in every step, also where they are not used.",
    "system_changed": "Keep the system prompt as it is; put what changes into the last message.",
    "messages_changed": "Append to the messages only: what is changed earlier is computed again "
    "from there on.",
    "context_compacted": "Compact less often, or keep more at once: each time all behind the first "
    "messages is computed again.",
    "evicted": "A larger KV cache or an offload tier would have kept it; or fewer sessions at once "
    "(queue_door).",
    "replica_lost": "A replica left or restarted. Drain replicas before they stop, and scale "
    "down more slowly.",
    "sent_elsewhere": "The replica that held it was busy. More replicas, or fewer sessions at "
    "once, would have let it wait there.",
    "rendered_differently": "Let the router ask the engine for its chat template (/tokenize): see "
    "docs/design/prompt.md.",
}


def mend(kind: str, looks_like: str) -> str:
    """What mends a finding, in a sentence or two."""
    if kind == VOLATILE:
        return _VOLATILE.get(looks_like, _REASONS["system_changed"])
    return _REASONS.get(kind, "")
