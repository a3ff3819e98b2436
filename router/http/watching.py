"""Watching an answer whose bytes are passed on as they came, or with their chunks' framing off."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

from router.http.events import Usage, UsageSearch, usage_of

if TYPE_CHECKING:
    from router.http.upstream import UpstreamConnection

# Answers up to this size are kept and decoded at their end, which is the quickest.
_KEPT = 64 * 1024
# Content that a read may inflate to; engines' is text, which never comes near.
_INFLATED = 4 * 1024 * 1024

INFLATABLE = frozenset((b"gzip", b"x-gzip", b"deflate"))


class Content(Protocol):
    """Is given an answer's content in pieces."""

    def scan(self, text: bytes) -> object:
        """The next piece."""


class Body:
    """An answer in one JSON object, watched for its usage."""

    __slots__ = ("_parts", "_search", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._search: UsageSearch | None = None

    def scan(self, text: bytes) -> None:
        """The next piece."""
        if self._search is not None:
            self._search.feed(text)
            return
        self._parts.append(text)
        self._size += len(text)
        if self._size > _KEPT:
            self._search = UsageSearch()
            for part in self._parts:
                self._search.feed(part)
            self._parts.clear()

    @property
    def usage(self) -> Usage | None:
        """What has been found in all that came."""
        if self._search is not None:
            return self._search.usage
        parts = self._parts
        return usage_of(parts[0] if len(parts) == 1 else b"".join(parts))


class Watch:
    """Takes from an answer's bytes what hides its content, for the one who looks at it."""

    __slots__ = ("_dechunk", "_inflate", "_strips", "content")

    def __init__(
        self, content: Content | None, *, chunked: bool, strips: bool = False, packed: bool = False
    ) -> None:
        """strips: the client gets the content without the chunks' framing, as HTTP/1.0 needs it.
        packed: the content is compressed in one of the INFLATABLE ways."""
        self.content = content
        self._dechunk = Dechunker() if chunked else None
        self._strips = strips
        self._inflate = zlib.decompressobj(47) if packed else None

    @property
    def is_plain(self) -> bool:
        """What comes is passed on as it is, and is not compressed."""
        return self.content is not None and self._inflate is None and not self._strips

    def feed(self, data: bytes, upstream: UpstreamConnection) -> bytes:  # noqa: ARG002
        """Body bytes as read -> what goes to the client."""
        text = data if self._dechunk is None else self._dechunk.feed(data)
        if self._strips:
            data = text
        if self.content is not None:
            if self._inflate is not None:
                text = self._inflated(text)
            self.content.scan(text)
        return data

    def _inflated(self, text: bytes) -> bytes:
        assert self._inflate is not None
        try:
            found = self._inflate.decompress(text, _INFLATED)
        except zlib.error:
            found = b""
        else:
            if not self._inflate.unconsumed_tail:
                return found
        # What it says cannot be known.
        self.content = None
        return found


class Dechunker:
    """Takes the chunk framing off a body: bytes of the current chunk still to come, and an
    unfinished line.

    Input has gone through the parser first, so its framing is known to be right.
    """

    __slots__ = ("_done", "_left", "_line")

    def __init__(self) -> None:
        self._left = 0
        self._line = b""
        self._done = False

    def feed(self, data: bytes) -> bytes:
        """Raw bytes -> the content in them."""
        out: list[bytes] = []
        at = 0
        while at < len(data) and not self._done:
            if self._left > 2:
                take = data[at : at + self._left - 2]
                out.append(take)
                at += len(take)
                self._left -= len(take)
            elif self._left:
                # The line end behind a chunk.
                take = data[at : at + self._left]
                at += len(take)
                self._left -= len(take)
            else:
                end = data.find(b"\n", at)
                if end < 0:
                    self._line += data[at:]
                    break
                size = int((self._line + data[at:end]).split(b";", 1)[0], 16)
                self._line = b""
                at = end + 1
                self._done = size == 0
                self._left = size + 2
        return b"".join(out)
