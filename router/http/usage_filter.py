"""Takes the usage event out of a stream again, where the router and not the client asked for it.

Works on the raw bytes of a chunked body. An engine sends each event as a chunk of its own; as long as a
read ends with a whole chunk and mentions no usage, it is passed on as it is. Only a chunk that came in
part is held back until the rest is there, since a client can make nothing of half an event anyway.
"""

from __future__ import annotations

import msgspec

_MARK = b'"usage"'
# A chunk of a stream that is larger than this carries something other than tokens: pass it on.
_HELD_MAX = 256 * 1024


class _Event(msgspec.Struct, gc=False):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_Event).decode


class UsageFilter:
    """The state of one stream: what is held back."""

    __slots__ = ("_held", "_off")

    def __init__(self) -> None:
        self._held = b""
        self._off = False

    def feed(self, data: bytes, in_chunk: bool) -> bytes:
        """Raw body bytes as read -> what of them (and of earlier ones) goes to the client now.

        in_chunk: the parser, having seen data, is inside a chunk.
        """
        if self._off:
            return data
        if not self._held and not in_chunk and data[-2:] == b"\r\n" and _MARK not in data:
            return data
        return self._walk(self._held + data if self._held else data)

    @property
    def whole(self) -> bool:
        """Whether the client has whole chunks only, so that another can follow."""
        return not self._off

    def _walk(self, data: bytes) -> bytes:
        out: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                break
            # The parser has checked the framing already; an extension after ';' is allowed.
            size = int(data[at:line_end].split(b";", 1)[0], 16)
            if size == 0:
                out.append(data[at:])
                at = end
                break
            stop = line_end + 2 + size + 2
            if stop > end:
                break
            payload = data[line_end + 2 : stop - 2]
            kept = self._without_usage(payload) if _MARK in payload else payload
            if kept is payload:
                out.append(data[at:stop])
            elif kept:
                out.append(b"%x\r\n%b\r\n" % (len(kept), kept))
            at = stop
        self._held = data[at:]
        if len(self._held) > _HELD_MAX:
            self._off = True
            out.append(self._held)
            self._held = b""
        return b"".join(out)

    def _without_usage(self, payload: bytes) -> bytes:
        if not payload.endswith(b"\n\n"):
            return payload
        events = payload[:-2].split(b"\n\n")
        kept = [event for event in events if not self._is_usage(event)]
        if len(kept) == len(events):
            return payload
        return b"\n\n".join(kept) + b"\n\n" if kept else b""

    def _is_usage(self, event: bytes) -> bool:
        if not event.startswith(b"data:") or _MARK not in event:
            return False
        try:
            parsed = _decode(event[5:])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        return parsed.choices == [] and parsed.usage is not None
