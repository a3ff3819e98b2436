"""Finding the usage figures in the end of an answer, without parsing the answer."""

from __future__ import annotations

import msgspec

_MARK = b'"usage":'
# A usage object is small; an object that goes on for longer is something else.
_REACH = 4096


class Usage(msgspec.Struct, gc=False, frozen=True):
    """What an engine says a request used, in tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in the KV cache; -1 when the engine does not say."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Object(msgspec.Struct, gc=False):
    """The usage objects of OpenAI's chat and completions (prompt_tokens), of its responses
    (input_tokens) and of Anthropic's messages (input_tokens counts the uncached ones only)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


_decode = msgspec.json.Decoder(_Object).decode


def find_usage(tail: bytes) -> Usage | None:
    """The last usage object in the end of a body; None when there is none.

    A quote inside a JSON string is escaped, so the mark is never found in a text the model wrote.
    """
    at = tail.rfind(_MARK)
    while at >= 0:
        found = _object_at(tail, at + len(_MARK))
        if found is not None:
            if found.prompt_tokens is not None:
                return Usage(
                    found.prompt_tokens,
                    found.completion_tokens or 0,
                    _cached(found.prompt_tokens_details),
                )
            if found.input_tokens is not None:
                return _from_input(found, found.input_tokens)
        at = tail.rfind(_MARK, 0, at)
    return None


def _object_at(tail: bytes, start: int) -> _Object | None:
    """The object that begins here. Nothing in it is a string, so its braces can be counted."""
    end = start
    while (end := tail.find(b"}", end, start + _REACH) + 1) > 0:
        if tail.count(b"{", start, end) <= tail.count(b"}", start, end):
            try:
                return _decode(tail[start:end])
            except msgspec.DecodeError:
                return None
    return None


def _cached(details: _Details | None) -> int:
    if details is None or details.cached_tokens is None:
        return -1
    return details.cached_tokens


def _from_input(found: _Object, tokens: int) -> Usage:
    output = found.output_tokens or 0
    read = found.cache_read_input_tokens
    if read is None:
        return Usage(tokens, output, _cached(found.input_tokens_details))
    return Usage(tokens + read + (found.cache_creation_input_tokens or 0), output, read)
