"""Requests that the router makes of a replica beside a client's, with whole answers."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import msgspec

from router.http.upstream import Failure, UpstreamConnection
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request

_LOOK_SECONDS = 0.25
"""Between two looks at whether a replica that is silent has failed."""
_AWAY_SECONDS = 1.0
"""Its health has been bad for so long: it will not answer."""
_LAST_WORD_SECONDS = 0.5
"""What a replica whose request was given up may still take to close the connection."""
_LARGEST = 64 * 1024 * 1024
"""Bytes of an answer that are read."""
_NOT_ASKED = (b"accept-encoding", b"expect")


def with_body(request: Request, body: bytes) -> Request:
    """The same request with another body, whose answer is not compressed."""
    pairs = zip(request.headers[::2], request.headers[1::2], strict=True)
    headers = [part for pair in pairs if pair[0].lower() not in _NOT_ASKED for part in pair]
    return msgspec.structs.replace(request, headers=headers, body=body, upgrade=b"")


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer."""

    status: int
    body: bytes


async def ask(gateway: Gateway, replica: Replica, request: Request) -> Answer | Failure:
    """Send a request over a connection of its own and read the whole answer.

    Who cancels it has the replica stop its work, and gets the answer all the same where the replica
    had sent it by then: it may tell of blocks that somebody has to fetch.
    """
    fleet, slot = gateway.fleet, replica.slot
    fresh = hung_up = False
    began = monotonic()
    while True:
        upstream = None if fresh else gateway.pools[slot].take()
        if upstream is None:
            fresh = True
            made = await gateway.connect(slot)
            if isinstance(made, Failure):
                return made
            upstream = made
        asker = _WholeAnswer()
        upstream.send(asker, request, replica, -1)
        try:
            while not asker.done.done():
                await asyncio.wait((asker.done,), timeout=_LOOK_SECONDS)
                late = monotonic() - began > gateway.settings.first_byte_timeout
                if not asker.done.done() and (
                    fleet.away(slot) > _AWAY_SECONDS or (late and not fleet.works(slot))
                ):
                    return Failure(504, Outcome.TIMEOUT_FIRST_BYTE, "silent", "did not answer")
        except asyncio.CancelledError:
            hung_up = True
            await _last_word(asker, upstream)
            if not asker.whole:
                raise
        finally:
            if asker.whole and not hung_up:
                upstream.release()
            elif not asker.lost:
                # Where it was hung up, nothing more can be written over it.
                upstream.drop()
        found = asker.done.result()
        if isinstance(found, Failure) and asker.lost and upstream.reused and not upstream.touched:
            fresh = True  # closed while idle, which crossed with our request
            continue
        return found


async def _last_word(asker: _WholeAnswer, upstream: UpstreamConnection) -> None:
    """Hang up, but hear what is on its way: an engine aborts at the end of what it reads."""
    transport = upstream.transport
    if asker.done.done() or not transport.can_write_eof():
        return
    transport.write_eof()
    await asyncio.wait((asker.done,), timeout=_LAST_WORD_SECONDS)


class _WholeAnswer:
    """Collects an answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Answer | Failure] = asyncio.get_running_loop().create_future()
        self.lost = False
        self._upstream: UpstreamConnection | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    @property
    def whole(self) -> bool:
        """The answer is here."""
        return self.done.done() and isinstance(self.done.result(), Answer)

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head has come, and this much of the body."""
        self._upstream = upstream
        upstream.relay = self
        self.feed(body)

    def feed(self, data: bytes) -> None:
        """More of the body."""
        self._pieces.append(data)
        self._size += len(data)
        upstream = self._upstream
        assert upstream is not None
        if upstream.complete:
            body = b"".join(self._pieces)
            self._end(Answer(upstream.status, _dechunked(body) if upstream.chunked else body))
        elif self._size > _LARGEST:
            self.broken("answered with too much")

    def switched(self, _: bytes) -> None:
        """It switched protocols unasked."""
        self.broken("switched protocols unasked")

    def broken(self, why: str) -> None:
        """What it sends is not HTTP."""
        self._end(Failure(502, Outcome.BAD_RESPONSE, "died", why))

    def upstream_lost(self, _: Exception | None) -> None:
        """The connection has closed."""
        self.lost = True
        what = "closed its connection without an answer"
        self._end(Failure(502, Outcome.DIED_BEFORE_HEAD, "died", what))

    def _end(self, found: Answer | Failure) -> None:
        if not self.done.done():
            self.done.set_result(found)


def _dechunked(body: bytes) -> bytes:
    """The data of a whole body in chunks, which the parser has found well formed."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
