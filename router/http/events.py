"""What the events of a stream say: that the answer has begun, or ended, an error, usage.

The one place where server-sent events are read. A scanner is given a stream's text in pieces; each
byte is looked at once. Of an event too large to be kept only its beginning and its usage are.
"""

from __future__ import annotations

import re

import msgspec

from router.http.errors import Form
from router.http.usage import Usage, UsageSearch, told, usage_within

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
            size = _event_size(buffer, self._from)
            if not size:
                break
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
        raw, kind = said.error, bytes(said.type)
        if kind == _FAILED_TYPE:
            self.ended = True
            try:
                found = _decode_response(said.response).error
            except msgspec.DecodeError:
                found = None
        elif bytes(raw) not in _NONE or kind == b'"error"' or event.startswith(b"event: error"):
            try:
                found = _decode_error(raw) if bytes(raw) not in _NONE else None
                if found is None and said.code:
                    found = _Error(code=msgspec.json.decode(said.code, type=int | str | None))
            except msgspec.DecodeError:
                found = None
        else:
            return False
        self.error = StreamError(found is not None and _of_request(found), DEAD in event)
        return True


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


def _event_size(text: bytearray, start: int) -> int:
    """Where the event ends that is not over at start; 0 when its end has not come."""
    found = _EMPTY_LINE(text, start)
    return found.end() if found is not None else 0
