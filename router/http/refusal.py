"""Requests that cannot be served at all, and the end of a connection after one."""

from __future__ import annotations

import asyncio

import msgspec

from router.http.errors import error_body
from router.http.heads import answer
from router.http.paths import PathRule

# A connection is read for this long after its last answer: closed with unread bytes, TCP would
# reset it, and the client might never see the answer.
LINGER_S = 2.0


class BadRequest(Exception):  # noqa: N818
    """A request that cannot be served; the connection ends with this answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Failure(msgspec.Struct, gc=False, frozen=True):
    """The last attempt at a replica that failed: what the client is told if no other succeeds."""

    status: int
    outcome: str
    message: str


def refusal(
    why: BadRequest, rule: PathRule, request_id: bytes, retry_after: bytes, extra: bytes
) -> bytes:
    """The whole answer, in the form of the API that was asked. extra: header lines of all own
    answers."""
    return answer(
        why.status,
        error_body(rule.form, why.status, str(why)),
        request_id=request_id,
        close=True,
        extra=retry_after + extra if why.status == 503 else extra,
    )


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
    """Close for writing after what was written; whatever the client still sends is for nobody."""
    if transport.is_closing():
        return
    if transport.can_write_eof():
        transport.write_eof()
        loop.call_later(LINGER_S, transport.abort)
    else:
        # TLS says good-bye by itself.
        transport.close()


def malformed(reason: str) -> BadRequest:
    """The parser could make nothing of it."""
    if "PRI" in reason:
        return BadRequest(505, "HTTP/2 is not spoken here; use HTTP/1.1")
    return BadRequest(400, f"malformed HTTP request: {reason}")


def head_too_large(limit: int) -> BadRequest:
    """Request line and headers."""
    message = f"the request's head is larger than max_head allows ({limit} bytes)"
    return BadRequest(431, message)


def gone_in_a_circle() -> BadRequest:
    """The router's own name is among those that have passed the request on."""
    message = (
        "the request has passed through this router before: one of its replicas leads back to it. "
        "Take that address out of replicas, or out of what discovery finds"
    )
    return BadRequest(508, message)


def body_too_large(limit: int) -> BadRequest:
    """Said by Content-Length, or found out."""
    message = f"the request's body is larger than max_body allows ({limit} bytes)"
    return BadRequest(413, message)
