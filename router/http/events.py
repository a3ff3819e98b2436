"""What the events of a stream say: that the answer has begun, or ended, an error, usage.

The one place where server-sent events are read. A scanner is given a stream's text in pieces; each
byte is looked at once. Of an event too large to be kept only its beginning and its usage are.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from router.http.routes import Form

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


class _Answer(msgspec.Struct, gc=False):
    usage: Figures | None = None


class _Inner(msgspec.Struct, gc=False):
    usage: msgspec.Raw = msgspec.Raw()


_decode_figures = msgspec.json.Decoder(Figures).decode
_inner = msgspec.json.Decoder(_Inner).decode
_answer = msgspec.json.Decoder(_Answer).decode


def usage_of(text: bytes) -> Usage | None:
    """The usage in a whole JSON object; None where there is none to be believed."""
    try:
        found = _answer(text).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if found is None else _usage(found, None)


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
        found = _decode_figures(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return before
    return _usage(found, before)


def _usage(found: Figures, before: Usage | None) -> Usage | None:
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


# An event larger than this carries something other than tokens.
LARGEST = 256 * 1024
# Of a larger one, what tells its type.
_BEGINNING = 512

# vLLM's words where its core is dead (EngineDeadError): its server answers on for some seconds.
DEAD = b"EngineCore encountered an issue"

# Bytes that every event has that ends an answer.
_END_MARKS = {
    Form.OPENAI: b"[DONE]",
    Form.RESPONSES: b'"response"',
    Form.ANTHROPIC: b"message_stop",
}
_END_TYPES = frozenset((b'"message_stop"', b'"response.completed"', b'"response.incomplete"'))
_FAILED_TYPE = b'"response.failed"'
# Errors of the request, in the words of those APIs that have no codes.
_CLIENTS = frozenset(
    (
        "authentication_error",
        "billing_error",
        "invalid_prompt",
        "invalid_request_error",
        "not_found_error",
        "permission_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "request_too_large",
    )
)
_NONE = (b"", b"null")
_EMPTY_LINE = re.compile(rb"\n\r?\n").search


class Kind:
    """What a stream's filter has to do with an event."""

    PLAIN = 0
    USAGE = 1
    """It carries usage and no token."""
    LAST = 2
    """A choice ends with it."""


class StreamError(msgspec.Struct, gc=False, frozen=True):
    """An error that came as an event."""

    of_request: bool
    """It tells of the request, as a 4xx does, and not of the replica."""
    dead: bool
    """The engine behind the server is dead."""


class _Event(msgspec.Struct, gc=False):
    type: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()
    code: msgspec.Raw = msgspec.Raw()


class _Error(msgspec.Struct, gc=False):
    code: int | str | None = None
    type: str | None = None


class _Response(msgspec.Struct, gc=False):
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_error = msgspec.json.Decoder(_Error).decode
_decode_response = msgspec.json.Decoder(_Response).decode


class Scanner:
    """The state of one stream: an event that has come in part, and what was found."""

    __slots__ = (
        "_buffer",
        "_from",
        "_large",
        "_large_size",
        "_token_mark",
        "began",
        "end_mark",
        "ended",
        "error",
        "token",
        "usage",
    )

    def __init__(self, form: Form, token_mark: bytes) -> None:
        """token_mark: bytes that each event with a token has, empty where each event has one."""
        self._token_mark = token_mark
        self._buffer = bytearray()
        self._from = 0
        self._large: UsageSearch | None = None
        self._large_size = 0
        self.end_mark = _END_MARKS[form]
        self.began = False
        """An event has come that is neither a comment, a ping, nor an error."""
        self.token = False
        """An event with a token has come."""
        self.ended = False
        """The API's own end of an answer has come."""
        self.error: StreamError | None = None
        self.usage: Usage | None = None

    @property
    def torn(self) -> bool:
        """An event has come in part."""
        return bool(self._buffer)

    def tells(self, text: bytes) -> bool:
        """Whether whole events may say more than that the answer goes on."""
        return (
            b'"usage"' in text
            or b'"error"' in text
            or self.end_mark in text
            or text.startswith(b"event: error")
        )

    def scan(self, text: bytes) -> list[tuple[int, int]]:
        """More of the stream. The kind and the size of each event that is whole by it."""
        buffer = self._buffer
        if self._large is not None:
            self._large.feed(text)
        buffer += text
        found: list[tuple[int, int]] = []
        at = 0
        while True:
            empty_line = _EMPTY_LINE(buffer, self._from)
            if empty_line is None:
                break
            size = empty_line.end()
            if self._large is not None:
                found.append((Kind.PLAIN, self._large_size + size - at))
                self._end_large(bytes(buffer[at:size]))
            else:
                found.append((self._event(bytes(buffer[at:size])), size - at))
            at = self._from = size
        if at:
            del buffer[:at]
        self._from = max(0, len(buffer) - 3)
        if len(buffer) > LARGEST:
            self._keep_beginning()
        return found

    def finish(self) -> list[tuple[int, int]]:
        """The stream is over: what is left of it is an event without its empty line."""
        size = len(self._buffer)
        if not size or self._large is not None:
            return []
        kind = self._event(bytes(self._buffer))
        self._buffer.clear()
        return [(kind, size)]

    def _keep_beginning(self) -> None:
        buffer = self._buffer
        if self._large is None:
            self._large = UsageSearch(self.usage)
            self._large.feed(bytes(buffer))
            self._large_size = 0
        # Its beginning tells its type; its last bytes may be a part of its end.
        dropped = len(buffer) - _BEGINNING - 3
        del buffer[_BEGINNING:-3]
        self._large_size += dropped
        self._from = _BEGINNING

    def _end_large(self, event: bytes) -> None:
        assert self._large is not None
        self.usage = self._large.usage
        self._large = None
        self._large_size = 0
        self.began = self.token = True
        beginning = event[:_BEGINNING]
        if _FAILED_TYPE in beginning or beginning.startswith(b"event: error"):
            # Of an event so large the code is not read: a response that failed while it was made.
            self.ended = True
            of_request = any(b'"%b"' % word.encode() in beginning for word in _CLIENTS)
            self.error = StreamError(of_request, DEAD in event)
        elif any(kind.strip(b'"') in beginning for kind in _END_TYPES):
            self.ended = True

    def _event(self, event: bytes) -> int:
        """One event with the empty line at its end."""
        if self.token and not self.tells(event):
            return Kind.LAST if _is_last(event) else Kind.PLAIN
        data = event_data(event)
        if data is None or event.startswith(b"event: ping"):
            return Kind.PLAIN
        if data == b"[DONE]":
            self.ended = True
            return Kind.PLAIN
        if self.tells(event):
            try:
                said = _decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                said = _Event()
            if self._is_error(event, said):
                return Kind.PLAIN
            usage = told(said.usage, self.usage)
            for inner in (said.response, said.message):
                if inner:
                    usage = usage_within(inner, usage)
            self.usage = usage
            if bytes(said.type) in _END_TYPES:
                self.ended = True
            if (
                bytes(said.usage).startswith(b"{")
                and bytes(said.choices) == b"[]"
                and event.startswith(b"data:")
            ):
                return Kind.USAGE
        self.began = True
        if not self.token and self._token_mark in event:
            self.token = True
        return Kind.LAST if _is_last(data) else Kind.PLAIN

    def _is_error(self, event: bytes, said: _Event) -> bool:
        kind = bytes(said.type)
        named = kind == b'"error"' or event.startswith(b"event: error")
        if bytes(said.error) in _NONE and not named and kind != _FAILED_TYPE:
            return False
        if kind == _FAILED_TYPE:
            self.ended = True
        error = _error_of(said)
        self.error = StreamError(error is not None and _of_request(error), DEAD in event)
        return True


def _error_of(said: _Event) -> _Error | None:
    """What an event says of its error; None where that cannot be read."""
    try:
        if bytes(said.type) == _FAILED_TYPE:
            return _decode_response(said.response).error
        found = None if bytes(said.error) in _NONE else _decode_error(said.error)
        if found is None and said.code:
            found = _Error(code=msgspec.json.decode(said.code, type=int | str | None))
        return found
    except msgspec.DecodeError:
        return None


def _of_request(error: _Error) -> bool:
    code = error.code
    if isinstance(code, int):
        return is_of_request(code)
    return code in _CLIENTS or error.type in _CLIENTS


def is_of_request(status: int) -> bool:
    """Whether an error status tells of the request rather than of the replica.

    Engines answer 501 where a model cannot do what was asked, and 505 to a version of HTTP.
    """
    return 400 <= status < 500 or status in (501, 505)


def event_data(event: bytes) -> bytes | None:
    """The data of an event; None for a comment, or where there is none."""
    if event.startswith(b"data:") and event.find(b"\n") >= len(event) - 2:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _is_last(data: bytes) -> bool:
    at = data.find(b'"finish_reason"')
    return at >= 0 and data[at + 15 : at + 24].strip(b" :").startswith(b'"')
