"""What a request's head says, header by header, and when the next head says the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from router.diagnosis.agents import AGENT_HEADER
from router.http.local_reply import BadRequest, gone_in_a_circle
from router.http.request import Request
from router.identity import PSEUDONYM
from router.queue.classes import HEADERS, Hints
from router.tenants.authenticator import Credentials

if TYPE_CHECKING:
    from router.http.gateway import Gateway

_NAME = PSEUDONYM.encode()


def take_special(gateway: Gateway, request: Request, low: bytes, name: bytes, value: bytes) -> None:
    """A header that is looked at. low: its name in lower case. Raises BadRequest."""
    if low == b"host":
        if request.host is not None:
            raise BadRequest(400, "more than one Host header")
        request.host = value
    elif low == b"content-length":
        request.content_length = value
    elif low == b"connection":
        request.connection += b"," + value.lower()
    elif low == b"x-request-id":
        request.request_id = value.strip()
    elif low == b"transfer-encoding":
        request.transfer += b"," + value.lower()
    elif low == b"expect":
        if value.strip().lower() != b"100-continue":
            raise BadRequest(417, "the only expectation the router knows is 100-continue")
        request.expect = True
    elif low == b"upgrade":
        request.upgrade = value.strip()
    elif low == b"x-warmroute-explain":
        request.explain = gateway.settings.explain_headers
    elif low == b"via":
        if _NAME in value:
            raise gone_in_a_circle()
        request.headers += (name, value)
    elif low in gateway.credential_headers:
        if request.credentials is None:
            request.credentials = Credentials()
        if not request.credentials.take(gateway.credential_headers[low], value):
            raise BadRequest(400, f"more than one {low.decode()} header")
    elif low in gateway.session_headers:
        request.names_session(gateway.session_headers[low], value)
        request.headers += (name, value)
    elif low == AGENT_HEADER:
        request.agent = value
        request.headers += (name, value)
    elif low in HEADERS:
        if request.hints is None:
            request.hints = Hints()
        setattr(request.hints, HEADERS[low], value)
        request.headers += (name, value)


class KnownHead(msgspec.Struct, gc=False, frozen=True):
    """The last head that a client sent. Clients send the same bytes with each request, but for the
    body's length: what the parser made of them holds for the next one too."""

    before: bytes
    """Up to the first digit of Content-Length."""
    after: bytes
    """From behind its last digit to the end of the head."""
    request: Request
    """What such a head is parsed to: to be copied."""

    def __repr__(self) -> str:
        # A head may hold a key.
        return "KnownHead()"


_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n)", re.IGNORECASE)
_STAYS = frozenset((b"", b",keep-alive"))


def known_head(request: Request, data: bytes, tenants: bool) -> KnownHead | None:
    """What to know a request's head by. data: the one read that brought the request and no more.

    tenants: who sends it is to be told by its credentials, with each request anew.

    None where there is more to it than method, path and headers that are passed on: then the parser
    reads the next one too.
    """
    end = data.find(b"\r\n\r\n") + 4
    length = _LENGTH.search(data, 0, end)
    # The parser took all of `data` for one request: where the rest is as long as it says, the head
    # ends where it seems to.
    if length is None or int(length[1]) != len(data) - end or length[1] != request.content_length:
        return None
    plain = request.keep_alive and not request.is_http10 and request.connection in _STAYS
    special = request.transfer or request.expect or request.upgrade or request.explain
    if not plain or special or (request.credentials is not None) is not tenants:
        return None
    if b"x-request-id" in data[:end].lower():
        # It names one request alone.
        return None
    like = Request(
        method=request.method,
        target=request.target,
        rule=request.rule,
        headers=_as_sent(request.headers) if tenants else [*request.headers],
        host=request.host,
        connection=request.connection,
        session=request.session,
        session_place=request.session_place,
        agent=request.agent,
        credentials=request.credentials,
        hints=request.hints,
    )
    return KnownHead(data[: length.start(1)], data[length.end(1) : end], like)


def _as_sent(headers: list[bytes]) -> list[bytes]:
    """A copy without the engine's authorization. Of a client's, none is among these headers."""
    pairs = zip(headers[::2], headers[1::2], strict=True)
    return [part for pair in pairs if pair[0].lower() != b"authorization" for part in pair]
