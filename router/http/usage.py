"""The usage figures of an answer: what an engine says, and what of it can be believed.

Answers echo what clients sent (the Responses API its tools and their schemas), so only a member
that stands where engines put theirs is read: `usage` of the outermost object, or of its member
`response` or `message`. Figures that no engine can mean are as none.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

_MOST = 1 << 30
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
# A usage object is small; an object that goes on for longer is something else.
_LONGEST = 4096


class Usage(msgspec.Struct, gc=False, frozen=True):
    """What an engine says a request used, in tokens."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens found in the KV cache; -1 when the engine does not say."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None


class Figures(msgspec.Struct, gc=False):
    """The usage objects of OpenAI's chat and completions (prompt_tokens), of its responses
    (input_tokens) and of Anthropic's messages (input_tokens counts the uncached ones only)."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: _Count | None = None
    cache_creation_input_tokens: _Count | None = None


class _Inner(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw()


class _Outer(_Inner, gc=False):
    response: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(Figures).decode
_inner = msgspec.json.Decoder(_Inner).decode
_outer = msgspec.json.Decoder(_Outer).decode


def usage_of(text: bytes) -> Usage | None:
    """The usage in a whole JSON object; None where there is none to be believed."""
    try:
        return told(_outer(text).usage, None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def usage_within(raw: bytes, before: Usage | None) -> Usage | None:
    """The usage in the `response` or `message` of an event, with what was known before it."""
    try:
        return told(_inner(raw).usage, before)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return before


def told(raw: bytes, before: Usage | None) -> Usage | None:
    """A usage object, or nothing; the figures that it leaves out are those known before it."""
    if not raw:
        return before
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return before
    prompt, output = found.prompt_tokens, found.completion_tokens
    details = found.prompt_tokens_details
    if prompt is None:
        prompt, output = found.input_tokens, found.output_tokens
        details = found.input_tokens_details
    cached = details.cached_tokens if details is not None else None
    if prompt is not None and found.cache_read_input_tokens is not None:
        cached = found.cache_read_input_tokens
        prompt += cached + (found.cache_creation_input_tokens or 0)
    if before is not None:
        if prompt is None or (cached is None and before.cached_tokens >= 0):
            prompt, cached = before.prompt_tokens, before.cached_tokens
        if output is None:
            output = before.output_tokens
    if prompt is None:
        return before
    if cached is None:
        cached = -1
    elif cached > prompt:
        return before
    return Usage(prompt, output or 0, cached)


_QUOTE, _OPEN, _CLOSE = b'"'[0], b"{[", b"}]"
# The rest of a string, and the next thing that matters in JSON. Where the text ends inside a
# string, its end stands for the missing quote: nothing is looked at twice.
_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+(?:(")|\\?\Z)', re.DOTALL)
_NEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:(")|\\?\Z)|[{}\[\]]', re.DOTALL)
_BRACKETS = bytes.maketrans(b"[]", b"{}")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
# A string no longer than this may be the beginning of a name that is looked for.
_NAME = 64


class UsageSearch:
    """Looks for the usage in JSON that comes in pieces, without keeping the pieces.

    The state is the depth in the JSON, the depth at which `usage` would be engines' own, the last
    string there, what is left of a piece that ended inside a string, and a usage object begun.
    """

    __slots__ = ("_begun", "_depth", "_level", "_name", "_rest", "_string", "usage")

    def __init__(self, before: Usage | None = None) -> None:
        self.usage = before
        self._depth = 0
        self._level = 1
        self._name = b""
        self._string = False
        self._rest = b""
        self._begun: bytes | None = None

    def feed(self, data: bytes) -> None:
        """The next piece."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._depth > self._level and self._begun is None and self._skips(data):
            return
        at = 0
        if self._string:
            found = _REST.match(data)
            assert found is not None
            at = found.end()
            if not found.lastindex:
                self._rest = _escape(found[0])
                return
            self._string = False
        begun = 0 if self._begun is not None else -1
        end = len(data)
        for found in _NEXT.finditer(data, at):
            mark = data[found.start()]
            if mark == _QUOTE:
                if not found.lastindex:
                    end = found.start()
                    self._torn(found[0])
                    break
                if self._depth == self._level:
                    self._name = found[0]
            elif mark in _OPEN:
                if self._depth == self._level and self._name == b'"usage"':
                    begun = found.start()
                    self._begun = b""
                elif self._depth == 1 and self._name in (b'"response"', b'"message"'):
                    self._level = 2
                self._depth += 1
                self._name = b""
            else:
                self._depth -= 1
                if begun >= 0 and self._depth == self._level and self._begun is not None:
                    self.usage = told(self._begun + data[begun : found.end()], self.usage)
                    self._begun = None
                    begun = -1
                elif self._depth < self._level:
                    self._level = 1
        if begun >= 0 and self._begun is not None:
            self._begun += data[begun:end]
            if len(self._begun) > _LONGEST:
                self._begun = None

    def _skips(self, data: bytes) -> bool:
        """Whether nothing of a piece is as far out as what is looked for; counts its depth then.

        Many times as fast as looking at each string and bracket.
        """
        plain = data.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in data else data
        parts = (b'"' + plain if self._string else plain).split(b'"')
        brackets = b"".join(parts[::2]).translate(_BRACKETS, _OTHERS)
        before = -1
        while len(brackets) != before:
            before = len(brackets)
            brackets = brackets.replace(b"{}", b"")
        closed = brackets.count(b"}")
        if self._depth - closed <= self._level:
            return False
        self._depth += before - 2 * closed
        self._string = len(parts) % 2 == 0
        self._rest = _escape(data)
        return True

    def _torn(self, string: bytes) -> None:
        """The piece ends inside this string."""
        if len(string) <= _NAME:
            # Looked at again when there is more of it. In a usage object no string is longer.
            self._rest = string
        else:
            self._begun = None
            self._string = True
            self._rest = _escape(string)


def _escape(text: bytes) -> bytes:
    """The backslash at the end of a string's beginning that escapes what follows, or nothing."""
    return b"\\" if (len(text) - len(text.rstrip(b"\\"))) % 2 else b""
