"""What of a message's head belongs to one hop, and how answers of our own look."""

from __future__ import annotations

from http import HTTPStatus

# Headers that the two sides of a proxy must not share: RFC 9110, section 7.6.1.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

# Headers that belong to the message itself. RFC 9110, 7.6.1, forbids to name them in Connection:
# without them the other side could not read what it gets.
END_TO_END = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-range",
        b"content-type",
        b"host",
        b"via",
    }
)

# Headers of a request that are looked at, or not passed on as they are, since its head is rebuilt
# from what was parsed; the session header comes to them.
SPECIAL_HEADERS = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"via",
    b"x-request-id",
    b"x-warmroute-explain",
}

_LINE = b"%b: %b\r\n"
_LINES = [_LINE * count for count in range(48)]


def header_lines(headers: list[bytes]) -> bytes:
    """name, value, name, value, ... as lines, each ended by CRLF; one formatting for all."""
    count = len(headers) >> 1
    form = _LINES[count] if count < len(_LINES) else _LINE * count
    return form % tuple(headers)


def outward(headers: list[bytes], host: bytes, prefix: str) -> list[bytes]:
    """A redirect's headers with a Location that the client can follow and that shows no inner
    address: an engine makes it of the host and the path that it was asked at."""
    found = list(headers)
    for at in range(0, len(found), 2):
        if found[at].lower() != b"location":
            continue
        where = found[at + 1]
        scheme, slashes, rest = where.partition(b"//")
        authority = rest[: len(host)].lower()
        behind = rest[len(host) : len(host) + 1]
        if slashes and scheme.lower() in (b"", b"http:", b"https:"):
            if authority != host.lower() or behind not in (b"", b"/", b"?", b"#"):
                continue
            where = rest[len(host) :]
            if behind != b"/":
                where = b"/" + where
        inner = prefix.encode()
        if inner and where.startswith(inner + b"/"):
            where = where[len(inner) :]
        found[at + 1] = where
    return found


REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def answer(
    status: int,
    body: bytes,
    *,
    request_id: bytes = b"",
    close: bool = False,
    is_http10: bool = False,
    head_only: bool = False,
    extra: bytes = b"",
    content_type: bytes = b"application/json",
) -> bytes:
    """A whole answer made by the router itself.

    old: the client speaks HTTP/1.0, where a connection that stays open must be announced.
    extra: more header lines, each ended by CRLF.
    """
    connection = (
        b"connection: close\r\n" if close else b"connection: keep-alive\r\n" if is_http10 else b""
    )
    about = b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type, len(body))
    head = b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n" % (
        status,
        REASONS.get(status, b"Error"),
        about if status != 204 else b"",
        b"x-request-id: %b\r\n" % request_id if request_id else b"",
        connection,
        extra,
    )
    return head if head_only else head + body
