"""Finding the usage figures in the end of an answer, without parsing the answer."""

from __future__ import annotations

import re

import msgspec

_MARK = b'"usage"'
# A usage object is small; what follows it (a big prompt_logprobs, say) is not looked at.
_REACH = 2048
_FIELD = re.compile(
    rb'"(prompt_tokens|completion_tokens|cached_tokens|input_tokens|output_tokens'
    rb'|cache_read_input_tokens|cache_creation_input_tokens)"\s*:\s*(\d{1,12})'
)


class Usage(msgspec.Struct, gc=False, frozen=True):
    """What an engine says a request used, in tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in the KV cache; -1 when the engine does not say."""


def find_usage(tail: bytes) -> Usage | None:
    """The last usage object in the end of a body; None when there is none.

    A quote inside a JSON string is escaped, so the mark is never found in a text the model wrote.
    Forms: OpenAI's chat and completions (prompt_tokens), its responses (input_tokens) and
    Anthropic's messages (input_tokens counts the uncached tokens only).
    """
    end = len(tail)
    while (at := tail.rfind(_MARK, 0, end)) >= 0:
        fields = {m[1]: int(m[2]) for m in _FIELD.finditer(tail, at, at + _REACH)}
        if b"prompt_tokens" in fields:
            return Usage(
                fields[b"prompt_tokens"],
                fields.get(b"completion_tokens", 0),
                fields.get(b"cached_tokens", -1),
            )
        if b"input_tokens" in fields:
            prompt, output = fields[b"input_tokens"], fields.get(b"output_tokens", 0)
            if b"cache_read_input_tokens" in fields:
                read = fields[b"cache_read_input_tokens"]
                return Usage(prompt + read + fields.get(b"cache_creation_input_tokens", 0), output, read)
            return Usage(prompt, output, fields.get(b"cached_tokens", -1))
        end = at
    return None
