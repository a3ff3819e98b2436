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
_NEAR_SECONDS = 1.0
"""An answer that comes so soon after a request was given up is waited for."""
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

    Who cancels it has the replica stop its work, and gets the answer all the same where it is near:
    it may tell of blocks that somebody has to fetch.
    """
    fleet, slot = gateway.fleet, replica.slot
    fresh = False
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
            await _last_word(asker, upstream)
            if not asker.whole:
                raise
        finally:
            if asker.whole:
                upstream.release()  # which closes it where it was hung up
            elif not asker.lost:
                upstream.drop()
        found = asker.done.result()
        if isinstance(found, Failure) and asker.lost and upstream.reused and not upstream.touched:
            fresh = True  # closed while idle, which crossed with our request
            continue
        return found


async def _last_word(asker: _WholeAnswer, upstream: UpstreamConnection) -> None:
    """Hear an answer that is near. Hang up if none is, but hear what is on its way.

    An engine drops the answer of a request that it has just finished when it is hung up on, and
    keeps the blocks of which the answer would have told. A short request is in that moment for a
    large part of its time, so that it is let finish.
    """
    if asker.done.done():
        return
    await asyncio.wait((asker.done,), timeout=_NEAR_SECONDS)
    if not asker.done.done() and upstream.hang_up():
        await asyncio.wait((asker.done,), timeout=_LAST_WORD_SECONDS)


class Nobody:
    """Takes an answer that nobody waits for any more."""

    def __init__(self, upstream: UpstreamConnection) -> None:
        """From now on it is told what comes over this connection."""
        self._upstream = upstream
        self._over = asyncio.Event()
        self._lost = False
        upstream.asker = self
        if upstream.relay is not None:
            upstream.relay = self

    async def hang_up(self, seconds: float) -> None:
        """Close the connection after so many seconds; keep it if the answer is whole before."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            pass  # it is given up here
        finally:
            if not self._lost:
                self._upstream.release()  # which closes it in the middle of an answer

    def respond(self, upstream: UpstreamConnection, body: bytes) -> None:
        """The head has come, and this much of the body."""
        upstream.relay = self
        self.feed(body)

    def feed(self, _: bytes) -> None:
        """More of the body."""
        if self._upstream.complete:
            self._over.set()

    def switched(self, _: bytes) -> None:
        """It switched protocols unasked."""
        self.broken("")

    def broken(self, _: str) -> None:
        """What it sends is not HTTP."""
        self._upstream.complete = False
        self._over.set()

    def upstream_lost(self, _: Exception | None) -> None:
        """The connection has closed."""
        self._lost = True
        self._over.set()


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
