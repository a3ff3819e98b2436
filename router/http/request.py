"""A request as it was parsed."""

from __future__ import annotations

import itertools
import os
import re

import msgspec

from router.http.heads import END_TO_END, HOP_BY_HOP
from router.http.paths import UNKNOWN, PathRule

_boot = os.urandom(5).hex().encode()
_count = itertools.count(1)
_good_id = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z").match

# Values of Connection that name no header.
_PLAIN = frozenset((b",keep-alive", b",close", b",upgrade"))
# Words in Connection that take no header out.
_NOT_NAMES = HOP_BY_HOP | END_TO_END | {b"close", b"keep-alive", b"upgrade", b""}


def request_id(given: bytes) -> bytes:
    """The client's X-Request-Id where it is fit to be logged and sent on, else a new one."""
    if given and _good_id(given):
        return given
    return b"wr-%b-%x" % (_boot, next(_count))


class Request(msgspec.Struct, gc=False):
    """One request, filled in while it is parsed. Its head is rebuilt from these parts, never
    copied."""

    method: bytes = b""
    target: bytes = b""
    """Path and query, in origin form."""
    rule: PathRule = UNKNOWN
    headers: list[bytes] = msgspec.field(default_factory=list)
    """End-to-end headers: name, value, name, value, ... with the client's spelling."""
    body: bytes = b""
    body_size: int = 0
    """Bytes accounted to this body while it is held."""
    host: bytes | None = None
    connection: bytes = b""
    """Connection's values, lower case, each after a comma."""
    content_length: bytes = b""
    transfer: bytes = b""
    """Transfer-Encoding, lower case, after a comma."""
    expect: bool = False
    request_id: bytes = b""
    session: bytes = b""
    """The session header's value, or empty."""
    explain: bool = False
    """The client asks for response headers that explain the choice."""
    keep_alive: bool = True
    is_http10: bool = False
    """HTTP/1.0: no chunked answers."""
    upgrade: bytes = b""
    """The protocol to switch to, or empty."""
    started: float = 0.0
    """Monotonic seconds at the last byte of the request."""

    @property
    def head_size(self) -> int:
        """Bytes of target and headers, without what was looked at and left out."""
        return len(self.target) + sum(map(len, self.headers)) + 2 * len(self.headers)

    @property
    def connection_option(self) -> bytes:
        """close, keep-alive or nothing."""
        options = {token.strip() for token in self.connection.split(b",")}
        return (
            b"close" if b"close" in options else b"keep-alive" if b"keep-alive" in options else b""
        )

    def drop_nominated(self) -> None:
        """Take out what Connection says is for this hop only: RFC 9110, 7.6.1."""
        if self.connection not in _PLAIN:
            self.headers = without_nominated(self.headers, self.connection)


def without_nominated(headers: list[bytes], connection: bytes) -> list[bytes]:
    """Headers without those that a Connection header names, save what it may not name. connection
    is lower case."""
    nominated = {token.strip() for token in connection.split(b",")} - _NOT_NAMES
    if not nominated:
        return headers
    pairs = zip(headers[::2], headers[1::2], strict=True)
    return [part for pair in pairs if pair[0].lower() not in nominated for part in pair]
