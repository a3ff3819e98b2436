"""A request as it was parsed."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from router.diagnosis.agents import SPANNING
from router.http.routes import UNKNOWN, PathRule
from router.queue.classes import Hints
from router.tenants.authenticator import Credentials
from router.tenants.identity import Identity

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

PREFILLER: Final = b"x-prefiller-host-port"
"""Who is to prefill a request first, for llm-d's routing sidecar in front of a replica
(llm-d-inference-scheduler, docs/disagg_pd.md)."""
DIRECTING: Final = frozenset(
    {
        PREFILLER,
        b"x-prefiller-url",
        b"x-encoder-hosts-ports",
        b"x-data-parallel-host-port",
        b"x-kv-cache-source-host-port",
    }
)
"""Headers that tell such a sidecar where to connect (llm-d, pkg/common/routing/common.go; the
second one in older versions). A client must not: its requests would reach any address."""

# Values of Connection that name no header.
_PLAIN = frozenset((b",keep-alive", b",close", b",upgrade"))
# Words in Connection that take no header out.
_NOT_NAMES = HOP_BY_HOP | END_TO_END | {b"close", b"keep-alive", b"upgrade", b""}


MAX_KEY_CHARACTERS = 128
"""Characters of a session's key that is kept as it is."""


def short_key(key: str) -> str:
    """What stands for a long key. Keys are remembered, and a client chooses them."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


NO_SESSION: Final = 1 << 30
"""The place of a header that is not there."""


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
    """The session that its headers name, or empty; see `session_key`."""
    session_place: int = NO_SESSION
    """Place of the header that names it in the order of those that do: the least counts."""
    agent: bytes = b""
    """Which agent of the session asks, where a header says that."""
    credentials: Credentials | None = None
    """The headers that tell who sends it, where tenants are set up. They are not sent on."""
    hints: Hints | None = None
    """What its headers say of its class in the queue; None when they say nothing."""
    identity: Identity | None = None
    """Who sends it, as the head of a request with a body told."""
    identified: float = 0.0
    """Monotonic seconds when that was found out."""
    explain: bool = False
    """The client asks for response headers that explain the choice."""
    keep_alive: bool = True
    is_http10: bool = False
    """HTTP/1.0: no chunked answers."""
    upgrade: bytes = b""
    """The protocol to switch to, or empty."""
    started: float = 0.0
    """Monotonic seconds at the last byte of the request."""

    def names_session(self, place: int, value: bytes) -> None:
        """One of the headers that name a session, by its place in their order."""
        if place < self.session_place and value:
            self.session, self.session_place = value, place

    @property
    def session_key(self) -> bytes:
        """What names its session, or the agent's own part of it; empty where no header does."""
        if self.agent and self.session_place == SPANNING:
            return self.session + b"/" + self.agent
        return self.session

    @property
    def names_conversation(self) -> bool:
        """Whether its headers name one conversation, and not several that go on side by side."""
        return bool(self.session) and (self.session_place != SPANNING or bool(self.agent))

    @property
    def head_size(self) -> int:
        """Bytes of target and headers, without what was looked at and left out."""
        return len(self.target) + sum(map(len, self.headers)) + 2 * len(self.headers)

    def take_header(self, name: bytes) -> bytes:
        """Remove a header, given in lower case. Returns its first value; empty where there is
        none."""
        headers, found = self.headers, b""
        for at in range(len(headers) - 2, -1, -2):
            if len(headers[at]) == len(name) and headers[at].lower() == name:
                found = headers[at + 1]
                del headers[at : at + 2]
        return found

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
