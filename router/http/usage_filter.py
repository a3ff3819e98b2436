"""Takes the usage event out of a stream again, where the router and not the client asked for it.

Works on the raw bytes of a chunked body. An engine sends each event as a chunk of its own; as long
as a read ends with a whole event in a whole chunk and mentions no usage, it is passed on as it is.
Only an event that came in part is held back until the rest is there, since a client can make
nothing of half an event anyway.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from router.http.upstream import UpstreamConnection

_MARK = b'"usage"'
_EVENT_END = re.compile(rb"(\n\n|\r\n\r\n)")
# A stream whose events are larger than this carries something other than tokens: pass it on.
_HELD_MAX = 256 * 1024


class _Event(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_Event).decode


class UsageFilter:
    """The state of one stream: what is held back, from the beginning of a chunk and an event."""

    __slots__ = ("_held", "passing", "tail")

    def __init__(self) -> None:
        self._held = b""
        self.passing = False
        """Nothing is looked at any more."""
        self.tail = b""
        """The last event that mentioned usage, taken out or not."""

    def feed(self, data: bytes, upstream: UpstreamConnection) -> bytes:
        """Raw body bytes as read -> what of them (and of earlier ones) goes to the client now.

        upstream: its parser has seen data.
        """
        if self.passing:
            return data
        chunks, upstream.chunks = upstream.chunks, 0
        if (
            not self._held
            and data[-4:] == b"\n\n\r\n"
            and not upstream.in_chunk
            and _MARK not in data
            # Where each chunk ends as an event does, none tears the mark apart.
            and (chunks == 1 or data.count(b"\r\n") == 2 * data.count(b"\n\n\r\n"))
        ):
            return data
        return self._walk(self._held + data if self._held else data)

    def _walk(self, data: bytes) -> bytes:
        out: list[bytes] = []
        at, begin, end = 0, 0, len(data)
        text = b""
        while at < end:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            # The parser has checked the framing already; an extension after ';' is allowed.
            size = int(data[at:line_end].split(b";", 1)[0], 16)
            if size == 0:
                # The last chunk: with trailers behind it or without, nothing more is events.
                out += (self._events(data[begin:at], text), data[at:])
                begin = end
                self.passing = True
                break
            stop = line_end + 2 + size + 2
            if stop > end:
                break
            text += data[line_end + 2 : stop - 2]
            at = stop
            if text.endswith((b"\n\n", b"\r\n\r\n")):
                out.append(self._events(data[begin:at], text))
                begin = at
                text = b""
        self._held = data[begin:]
        if len(self._held) > _HELD_MAX:
            self.passing = True
            out.append(self._held)
            self._held = b""
        return b"".join(out)

    def _events(self, raw: bytes, text: bytes) -> bytes:
        """Whole chunks, and the text in them -> the chunks without a usage event."""
        if _MARK not in text:
            return raw
        parts = _EVENT_END.split(text)
        kept = b""
        for event, event_end in zip(parts[::2], [*parts[1::2], b""], strict=True):
            if _MARK in event:
                self.tail = event
                if _is_usage(event):
                    continue
            kept += event + event_end
        if len(kept) == len(text):
            return raw
        return b"%x\r\n%b\r\n" % (len(kept), kept) if kept else b""


def _is_usage(event: bytes) -> bool:
    if not event.startswith(b"data:"):
        return False
    try:
        parsed = _decode(event[5:])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return parsed.choices == [] and parsed.usage is not None
