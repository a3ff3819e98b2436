"""One HTTP/1.1 connection to a simulated replica: bytes to requests, answers to bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from loadgen.replicas.faults import Received

if TYPE_CHECKING:
    from loadgen.replicas.answers import Answer
    from loadgen.replicas.replica import Replica

_REASONS = {status.value: status.phrase for status in HTTPStatus}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """Requests of one connection are answered one after the other, in order."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.transport: asyncio.Transport
        self.answer: Answer | None = None
        """The answer in progress to a request that generates."""
        self.parser = httptools.HttpRequestParser(self)
        self.queue: deque[tuple[Received, bool]] = deque()
        self.busy = False
        self.keep_alive = True
        self.request_id = b""
        self.method = ""
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        if self.replica.alive:
            self.replica.connections.add(self)
        else:
            # Accepted just before the replica died.
            self.transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.replica.connections.discard(self)
        self.queue.clear()
        if self.answer is not None:
            self.replica.abandon(self.answer)
            self.answer = None

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self.keep_alive = False
            self.method = "GET"
            self.reply(400, b"Invalid HTTP request received.", "text/plain; charset=utf-8")

    # -- httptools

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers = []
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        for name, value in self._headers:
            if (
                name == "expect"
                and value.lower() == "100-continue"
                and not self._held(self._url.decode("latin-1"))
                and not self.busy
            ):
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        received = Received(
            self.parser.get_method().decode(),
            self._url.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            monotonic(),
        )
        self.replica.record(received)
        self.queue.append((received, self.parser.should_keep_alive()))
        if not self.busy:
            self.serve_next()

    # -- answering

    def serve_next(self) -> None:
        """Begin the next request that has arrived, unless the replica is frozen."""
        while self.queue and not self.busy and not self._held(self.queue[0][0].path):
            received, self.keep_alive = self.queue.popleft()
            self.busy = True
            self.method = received.method
            self.request_id = (received.header("x-request-id") or "").encode("latin-1")
            self.replica.dispatch(self, received)

    def _held(self, path: str) -> bool:
        """Not to be answered now: a frozen replica answers only what can thaw it."""
        return self.replica.frozen and not path.startswith("/_sim/")

    def reply(
        self, status: int, body: bytes, kind: str = "application/json", more: bytes = b""
    ) -> None:
        """Write a complete answer, head and body."""
        head = b"HTTP/1.1 %d %b\r\nserver: uvicorn\r\ncontent-length: %d\r\n" % (
            status,
            _REASONS.get(status, "").encode(),
            len(body),
        )
        if kind:
            head += b"content-type: %b\r\n" % kind.encode()
        head += more + self._common()
        self.transport.write(head if self.method == "HEAD" else head + body)
        self.done()

    def stream_head(self) -> bytes:
        """The bytes that precede the first chunk of a streamed answer."""
        return STREAM_HEAD + self._common()

    def _common(self) -> bytes:
        out = b""
        if self.request_id:
            out = b"x-request-id: %b\r\n" % self.request_id
        if not self.keep_alive:
            out += b"connection: close\r\n"
        return out + b"\r\n"

    def done(self) -> None:
        """The answer is out: close, or go on with the next request."""
        self.answer = None
        self.busy = False
        if not self.keep_alive:
            self.transport.close()
        elif self.queue:
            self.serve_next()
