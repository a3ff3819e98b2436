"""One request and one HTTP/1.1 connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

from loadgen.client.answer import Answer

if TYPE_CHECKING:
    from loadgen.client.target import Target

REPLICA_HEADER = b"x-warmroute-replica"
REASON_HEADER = b"x-warmroute-reason"
_MOST_ERROR_BYTES = 2000


class Call:
    """One request on its way. ``done`` is called exactly once, when it has ended, well or not."""

    __slots__ = (
        "answer",
        "decision",
        "done",
        "ended",
        "fresh",
        "message",
        "on",
        "replica",
        "sent",
        "status",
        "tokens",
    )

    def __init__(self, message: tuple[bytes, bytes], answer: Answer, done: Done) -> None:
        self.message = message
        self.answer = answer
        self.done = done
        self.ended = False
        self.fresh = False
        """Wants a new connection: a kept one was closed under it."""
        self.on: Connection | None = None
        self.replica = ""
        self.decision = ""
        """Why a gateway chose the replica, in its words."""
        self.sent = 0.0
        self.status = 0
        self.tokens = 0
        """The prompt's length by its bytes."""

    def end(self, reason: str = "") -> None:
        if not self.ended:
            self.ended = True
            self.on = None
            if reason:
                self.answer.reason = reason
            else:
                self.answer.end()
            self.done(self)


Done = Callable[[Call], None]


class Connection(asyncio.Protocol):
    """One connection, one call at a time. Mutable state: ``call`` (None when idle) and what its
    head said."""

    __slots__ = (
        "_body",
        "_bounded",
        "_document",
        "_now",
        "_parser",
        "_transport",
        "_used",
        "call",
        "target",
    )

    def __init__(self, target: Target) -> None:
        self.target = target
        self.call: Call | None = None
        self._used = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._body: list[bytes] = []
        self._document = False
        self._bounded = False

    def start(self, call: Call) -> None:
        assert self._transport is not None
        self.call = call
        call.on = self
        self._body.clear()
        self._document = self._bounded = False
        self._transport.writelines(call.message)

    def abort(self) -> None:
        """Close without waiting; the call, if any, is the caller's to end."""
        self.call = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.target.open.add(self)

    def data_received(self, data: bytes) -> None:
        if self.call is None:  # nothing was asked: not HTTP as we know it
            self.abort()
            return
        self._now = self.target.clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail("load client failed")
            raise
        except httptools.HttpParserError:
            self._fail("not HTTP")

    def connection_lost(self, exc: Exception | None) -> None:
        self.target.open.discard(self)
        self.target.forget(self)
        call, self.call = self.call, None
        if call is None:
            return
        if call.status == 0:
            if self._used and not call.fresh:
                # A kept connection that the server closed while our request was on its way to it.
                call.fresh = True
                self.target.send(call)
                return
            call.end("closed without answer" if exc is None else "connection lost")
        elif self._bounded or exc is not None:
            call.end("connection lost")
        else:
            self._complete(call)

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        if size in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._bounded = True
        elif size == 12 and name.lower() == b"content-type":
            self._document = not value.startswith(b"text/event-stream")
        elif size == 19 and name.lower() == REPLICA_HEADER and self.call is not None:
            self.call.replica = value.decode("latin-1")
        elif size == 18 and name.lower() == REASON_HEADER and self.call is not None:
            self.call.decision = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        call = self.call
        if call is not None:
            call.status = self._parser.get_status_code()
            if call.status != 200:
                self._document = True

    def on_body(self, data: bytes) -> None:
        call = self.call
        if call is None:
            return
        if self._document:
            self._body.append(data)
        else:
            call.answer.feed_stream(data, self._now)

    def on_message_complete(self) -> None:
        call = self.call
        if call is None:
            return
        if call.status < 200:
            call.status = 0
            return
        self.call = None
        self._used = True
        if self._parser.should_keep_alive():
            self.target.keep(self)
        elif self._transport is not None:
            self._transport.close()
        self._complete(call)

    def _complete(self, call: Call) -> None:
        if call.status != 200:
            call.end(f"status {call.status}")
            self.target.complain(call.status, b"".join(self._body)[:_MOST_ERROR_BYTES])
            return
        if self._document:
            call.answer.feed_document(b"".join(self._body), self._now)
        call.end()

    def _fail(self, reason: str) -> None:
        call = self.call
        self.abort()
        if call is not None:
            call.end(reason)
