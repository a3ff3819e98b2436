"""Takes the chunk framing off a body, for clients of HTTP/1.0, which know no chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.http.upstream import UpstreamConnection

_TAIL = 4096


class Dechunker:
    """The state of one body: bytes of the current chunk still to come, and an unfinished line.

    Input has gone through the parser first, so its framing is known to be right.
    """

    __slots__ = ("_done", "_left", "_line", "tail")

    def __init__(self) -> None:
        self._left = 0
        self._line = b""
        self._done = False
        self.tail = b""
        """The end of the content, where usage is."""

    def feed(self, data: bytes, upstream: UpstreamConnection) -> bytes:  # noqa: ARG002
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
        content = b"".join(out)
        self.tail = (self.tail + content)[-_TAIL:]
        return content
