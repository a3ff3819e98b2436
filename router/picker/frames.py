"""HTTP/2's frames and the representations in header blocks: RFC 9113, RFC 7541."""

from __future__ import annotations

import struct
from typing import Final

# Types of frames: RFC 9113, section 6.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

# Error codes: section 7.
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

HEAD: Final = struct.Struct(">HBBBI")
"""Before a frame: 24 bits of size, type, flags, stream."""


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame, whole."""
    size = len(content)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + content


class ProtocolError(Exception):
    """The client broke the rules in a way that ends the connection: section 5.4.1."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def changes_table(block: bytes) -> bool:
    """Whether a header block, which has been decoded, adds to the decoder's table or resizes it:
    RFC 7541, section 6."""
    at, end = 0, len(block)
    while at < end:
        first = block[at]
        if first >= 0x80:  # a reference to the table
            at = _past_number(block, at, 0x7F)
        elif first >= 0x20:  # a literal that is added to the table, or the table's new size
            return True
        else:  # a literal that is not added
            named = first & 0x0F
            at = _past_number(block, at, 0x0F)
            for _ in range(1 if named else 2):
                at = _past_string(block, at)
    return False


def _past_number(block: bytes, at: int, mask: int) -> int:
    """Where what follows a number begins. mask: the bits of its first byte that are its own."""
    more = block[at] & mask == mask
    at += 1
    while more:
        more = block[at] >= 0x80
        at += 1
    return at


def _past_string(block: bytes, at: int) -> int:
    size, begin = block[at] & 0x7F, at
    at = _past_number(block, at, 0x7F)
    for shift, byte in enumerate(block[begin + 1 : at]):
        size += (byte & 0x7F) << 7 * shift
    return at + size


def unpadded(content: bytes) -> bytes:
    """A frame's content without its padding. Raises ProtocolError."""
    padding = content[0] if content else 1
    if padding >= len(content):
        raise ProtocolError(PROTOCOL_ERROR, "more padding than content")
    return content[1 : len(content) - padding]
