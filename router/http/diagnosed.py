"""Answers that tell their client why its prompt missed the cache, in the fields of its API.

Only for requests that ask (`router.diagnosis.vendors`). A member is put into the answer's object;
everything else stays byte for byte, though it may come in other chunks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from router.diagnosis.diagnoser import hash_of
from router.diagnosis.vendors import member, spliced
from router.diagnosis.verdict import ANTHROPIC, Diagnosis
from router.http.events import Scanner, Usage, event_data, usage_of
from router.http.relay import Engine, EventStream
from router.http.watching import Dechunker, Watch

if TYPE_CHECKING:
    from router.http.relay import Relay
    from router.http.upstream import UpstreamConnection

_LARGEST: Final = 16 << 20
"""Bytes of an answer in one piece that is held back; a larger one is passed on as it is."""
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_ID_WITHIN: Final = 1024


class _Event(msgspec.Struct, gc=False):
    message: msgspec.Raw = msgspec.Raw()
    response: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Event).decode


def attach(relay: Relay, upstream: UpstreamConnection, diagnosis: Diagnosis, block: int) -> None:
    """Have this answer tell the diagnosis. Not one that is an error, compressed, or for HTTP/1.0.

    block: tokens of the engine's blocks.
    """
    watch, scanner = relay.watch, relay.scanner
    if isinstance(watch, EventStream) and scanner is not None:
        relay.watch = DiagnosedStream(scanner, upstream.pool, diagnosis, block)
    elif isinstance(watch, Watch) and watch.is_plain and upstream.status == 200:
        relay.watch = DiagnosedBody(watch, diagnosis, block, chunked=upstream.chunked)


class DiagnosedStream(EventStream):
    """A stream of events in which the answer's object stands in some."""

    __slots__ = ("_block", "_diagnosis")

    def __init__(self, scanner: Scanner, engine: Engine, diagnosis: Diagnosis, block: int) -> None:
        super().__init__(scanner, engine, filters=True)
        self._stamps = False
        self._diagnosis = diagnosis
        self._block = block

    def _edited(self) -> tuple[bytes, bool]:
        """The events held back, with the member in those that have the answer's object."""
        text = self._text
        kept: list[bytes] = []
        edited = False
        at = 0
        for _, size in self._kinds:
            event = bytes(text[at : at + size])
            at += size
            told = self._told(event)
            edited = edited or told is not event
            kept.append(told)
        return b"".join(kept), edited

    def _told(self, event: bytes) -> bytes:
        anthropic = self._diagnosis.field == ANTHROPIC
        if (b'"message"' if anthropic else b'"response"') not in event:
            return event
        try:
            found = _decode(event_data(event) or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return event
        inner = bytes(found.message if anthropic else found.response)
        at = event.find(inner)
        if not inner.startswith(b"{") or at < 0:
            return event
        told = _with_member(inner, self._diagnosis, self.scanner.usage, self._block)
        return event[:at] + told + event[at + len(inner) :]


class DiagnosedBody(Watch):
    """An answer in one JSON object. It is held back until it is whole, since its usage may stand at
    its end and its length is told before it."""

    __slots__ = ("_block", "_chunks", "_diagnosis", "_parts", "_passes", "_size")

    def __init__(self, watch: Watch, diagnosis: Diagnosis, block: int, *, chunked: bool) -> None:
        super().__init__(watch.content, chunked=False)
        self._diagnosis = diagnosis
        self._block = block
        self._chunks = Dechunker() if chunked else None
        self._parts: list[bytes] = []
        self._size = 0
        self._passes = False
        """It is too large to be held back."""

    def feed(self, data: bytes, upstream: UpstreamConnection) -> bytes:
        """Body bytes as read -> what goes to the client."""
        text = data if self._chunks is None else self._chunks.feed(data)
        if self.content is not None:
            self.content.scan(text)
        if self._passes:
            return data
        self._parts.append(data)
        self._size += len(data)
        if self._size > _LARGEST:
            self._passes = True
            return self._held()
        return self._whole(upstream) if upstream.complete else b""

    def _held(self) -> bytes:
        held = b"".join(self._parts)
        self._parts.clear()
        return held

    def _whole(self, upstream: UpstreamConnection) -> bytes:
        """The answer has come: what the client gets in its place."""
        raw = self._held()
        whole = raw[: upstream.length] if self._chunks is None else Dechunker().feed(raw)
        if upstream.length < 0 and self._chunks is None:
            whole = raw
        if not whole.rstrip().endswith(b"}"):
            return raw
        told = _with_member(whole, self._diagnosis, usage_of(whole), self._block)
        if self._chunks is not None:
            return b"%x\r\n%b\r\n0\r\n\r\n" % (len(told), told)
        if upstream.length >= 0:
            upstream.length = len(told)
            names = upstream.headers[::2]
            at = next(at for at, name in enumerate(names) if name.lower() == b"content-length")
            upstream.headers[2 * at + 1] = b"%d" % len(told)
        return told


def _with_member(value: bytes, diagnosis: Diagnosis, usage: Usage | None, block: int) -> bytes:
    if not diagnosis.answer:
        found = _ID.search(value, 0, _ID_WITHIN)
        if found is not None:
            diagnosis.answer = hash_of(found[1].decode("utf-8", "replace"))
    tokens = usage.prompt_tokens if usage is not None else 0
    cached = usage.cached_tokens if usage is not None else -1
    return spliced(value, member(diagnosis, tokens, cached, block))
