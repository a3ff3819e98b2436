"""A request as it was parsed."""

from __future__ import annotations

import itertools
import os
import re

from router.http.paths import PathRule

_boot = os.urandom(5).hex().encode()
_count = itertools.count(1)
_good_id = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z").match


def request_id(given: bytes) -> bytes:
    """The client's X-Request-Id where it is fit to be logged and sent on, else a new one."""
    if given and _good_id(given):
        return given
    return b"wr-%b-%x" % (_boot, next(_count))


class Request:
    """One parsed request. Its head is rebuilt from these parts, never copied."""

    __slots__ = (
        "body",
        "body_size",
        "explain",
        "head_size",
        "keep_alive",
        "lines",
        "method",
        "old",
        "request_id",
        "rule",
        "session",
        "started",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    """Path and query, in origin form."""
    rule: PathRule
    lines: list[bytes]
    """End-to-end headers, "name: value" with the client's spelling."""
    body: bytes
    body_size: int
    """Bytes accounted to this body while it is held."""
    head_size: int
    request_id: bytes
    session: bytes
    """The session header's value, or empty."""
    explain: bool
    """The client asks for response headers that explain the choice."""
    keep_alive: bool
    old: bool
    """HTTP/1.0: no chunked answers."""
    upgrade: bytes
    """The protocol to switch to, or empty."""
    started: float
    """Monotonic seconds at the last byte of the request."""
