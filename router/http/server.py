"""The client's side of the gateway: bytes of a connection -> requests, one exchange at a time.

The mutable state on a connection is: the head and body being parsed, the requests parsed and waiting for
their turn (pipelining), and the exchange in progress. Answers go out in the order of the requests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from router.http.classify import classify, origin_form
from router.http.errors import Form, error_body
from router.http.exchange import Exchange
from router.http.heads import HOP_BY_HOP, answer
from router.http.request import Request, request_id

if TYPE_CHECKING:
    from router.http.gateway import Gateway

# Pipelined requests that may wait on one connection before it is not read any more.
_PIPELINE = 16

_SPECIAL = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"x-request-id",
    b"x-warmroute-explain",
}


class BadRequest(Exception):
    """A request that cannot be served; the connection ends with this answer."""

    def __init__(self, status: int, message: str, code: str = "bad_request") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_body_size",
        "_close_after",
        "_connection",
        "_content_length",
        "_downgrade",
        "_expect",
        "_explain",
        "_feeding",
        "_gateway",
        "_head_size",
        "_host",
        "_lines",
        "_parser",
        "_refusal",
        "_request_id",
        "_session",
        "_transfer",
        "_upgrade",
        "_url",
        "_waiting",
        "exchange",
        "idle_ticks",
        "in_head",
        "in_request",
        "paused",
        "request_ticks",
        "transport",
    )

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._waiting: deque[Request] = deque()
        self._close_after = False
        self._refusal = b""
        self._body: list[bytes] = []
        self._body_size = 0
        self._feeding = 0
        self.exchange: Exchange | None = None
        self.in_head = False
        self.in_request = False
        self.paused = False
        self.idle_ticks = 0
        """Sweeps since the client last sent something."""
        self.request_ticks = 0
        """Sweeps since the current request began to arrive."""
        self._parser = httptools.HttpRequestParser(self)

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = transport = cast(asyncio.Transport, transport)
        gateway = self._gateway
        if len(gateway.clients) >= gateway.settings.max_connections:
            gateway.refused_connections += 1
            body = error_body(Form.OPENAI, 503, "the router has as many connections as max_connections allows")
            transport.write(answer(503, body, close=True, extra=gateway.retry_after))
            transport.close()
            return
        gateway.clients.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self.idle_ticks = 0
        if self._close_after:
            return
        self._feeding = len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._upgraded(data[exc.args[0] :])
        except httptools.HttpParserCallbackError as exc:
            cause = exc.__context__ if exc.__cause__ is None else exc.__cause__
            if not isinstance(cause, BadRequest):
                raise
            self._refuse(cause)
        except httptools.HttpParserError as exc:
            self._refuse(BadRequest(400, f"malformed HTTP request: {exc}"))
        else:
            if self.in_head:
                self._head_size += len(data)
                if self._head_size > self._gateway.settings.max_head:
                    self._refuse(_head_too_large(self._gateway.settings.max_head))

    def eof_received(self) -> bool:
        """The client closed its side: nobody is there to read an answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone: so is what it asked for."""
        gateway = self._gateway
        gateway.clients.discard(self)
        gateway.live.body_bytes -= self._body_size + sum(r.body_size for r in self._waiting)
        self._body_size = 0
        self._waiting.clear()
        if self.exchange is not None:
            self.exchange.client_gone()
        # The parser knows this connection and this connection the parser: break the circle.
        self._parser = None

    def pause_writing(self) -> None:
        """The client reads more slowly than its replica writes."""
        self.paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.paused = False
        self.idle_ticks = 0
        if self.exchange is not None:
            self.exchange.resume()

    # -- parser

    def on_message_begin(self) -> None:
        """A request line begins."""
        self._url = b""
        self._lines: list[bytes] = []
        self._host: bytes | None = None
        self._connection = self._upgrade = self._request_id = self._session = b""
        self._content_length = self._transfer = b""
        self._expect = self._explain = self._downgrade = False
        self._head_size = 0
        self.in_head = self.in_request = True
        self.request_ticks = 0

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        low = name.lower()
        if low not in _SPECIAL:
            self._lines.append(b"%b: %b" % (name, value))
            if low == self._gateway.session_header:
                self._session = value
        elif low == b"host":
            if self._host is not None:
                raise BadRequest(400, "more than one Host header")
            self._host = value
        elif low == b"content-length":
            self._content_length = value
        elif low == b"connection":
            self._connection += b"," + value.lower()
        elif low == b"x-request-id":
            self._request_id = value.strip()
        elif low == b"transfer-encoding":
            self._transfer += b"," + value.lower()
        elif low == b"expect":
            if value.strip().lower() != b"100-continue":
                raise BadRequest(417, "the only expectation the router knows is 100-continue")
            self._expect = True
        elif low == b"upgrade":
            self._upgrade = value.strip()
        elif low == b"x-warmroute-explain":
            self._explain = self._gateway.settings.explain_headers

    def on_headers_complete(self) -> None:
        """The head is whole: refuse here what must not go further."""
        self.in_head = False
        gateway = self._gateway
        settings = gateway.settings
        if self._head_size + self._feeding > settings.max_head:
            size = len(self._url) + sum(map(len, self._lines)) + 2 * len(self._lines)
            if size > settings.max_head:
                raise _head_too_large(settings.max_head)
        version = self._parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise BadRequest(505, f"HTTP/{version} is not spoken here", "http_version")
        if self._host is None and version == "1.1":
            raise BadRequest(400, "the Host header is missing")
        if self._transfer:
            if version == "1.0":
                raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
            if self._transfer.strip(b", ") != b"chunked":
                raise BadRequest(501, "the only transfer coding the router knows is chunked")
        elif self._content_length:
            try:
                length = int(self._content_length)
            except ValueError:
                raise BadRequest(400, "Content-Length is not a number") from None
            if length > settings.max_body:
                raise _body_too_large(settings.max_body)
        if self._connection:
            self._drop_nominated()
        if self._upgrade:
            if self._upgrade.lower() != b"websocket":
                self._downgrade = True
            elif self._parser.get_method() != b"GET":
                raise BadRequest(400, "a WebSocket begins with GET")
        if self._expect and version == "1.1" and self.exchange is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        size = len(body)
        gateway = self._gateway
        self._body_size += size
        gateway.live.body_bytes += size
        if self._body_size > gateway.settings.max_body:
            raise _body_too_large(gateway.settings.max_body)
        if gateway.live.body_bytes > gateway.settings.body_memory:
            raise BadRequest(
                503, "the router holds as many request bodies as body_memory allows", "overloaded"
            )
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A whole request has arrived."""
        self.in_request = False
        if self._downgrade:
            return
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise BadRequest(405, "CONNECT is not served here")
        body = self._body
        request = Request()
        request.method = method
        target = self._url
        if target[:1] != b"/":
            target = origin_form(target, method)
        request.target = target
        request.rule = classify(target)
        request.lines = self._lines
        request.body = body[0] if len(body) == 1 else b"".join(body)
        request.body_size = self._body_size
        request.request_id = request_id(self._request_id)
        request.session = self._session
        request.explain = self._explain
        request.keep_alive = self._parser.should_keep_alive()
        request.old = self._parser.get_http_version() == "1.0"
        request.upgrade = b"" if self._downgrade else self._upgrade
        request.started = monotonic()
        self._body = []
        self._body_size = 0
        if self.exchange is None:
            self._begin(request)
        else:
            self._waiting.append(request)
            if len(self._waiting) >= _PIPELINE:
                self.transport.pause_reading()

    # -- exchanges

    def _begin(self, request: Request) -> None:
        self.exchange = exchange = Exchange(self._gateway, self, request)
        exchange.start()

    def exchange_ended(self, keep_alive: bool) -> None:
        """The answer has been handed to the transport in full (or the connection cannot be used on)."""
        self.exchange = None
        if not keep_alive or self._gateway.closing:
            self.close()
            return
        if self._waiting:
            if len(self._waiting) == _PIPELINE:
                self.transport.resume_reading()
            # Not at once: a long queue of local answers must not nest ever deeper.
            self._gateway.loop.call_soon(self._next)
        elif self._refusal:
            self._send_refusal()

    def _next(self) -> None:
        if self.exchange is None and self._waiting:
            self._begin(self._waiting.popleft())

    def close(self) -> None:
        """Send what is still to be sent, then close."""
        self._close_after = True
        self.transport.close()

    @property
    def idle(self) -> bool:
        """Nothing of a request has arrived and nothing is being answered."""
        return (
            self.exchange is None and not self.in_request and not self._waiting
        )

    # -- refusals and special cases

    def _refuse(self, why: BadRequest) -> None:
        gateway = self._gateway
        gateway.live.body_bytes -= self._body_size
        self._body_size = 0
        self._body = []
        rule = classify(self._url) if getattr(self, "_url", b"")[:1] == b"/" else None
        form = rule.form if rule is not None else Form.OPENAI
        gateway.bad_request(rule, why.status, why.code)
        self._refusal = answer(
            why.status,
            error_body(form, why.status, str(why), code=why.code),
            request_id=request_id(getattr(self, "_request_id", b"")),
            close=True,
            extra=gateway.retry_after if why.status == 503 else b"",
        )
        self._close_after = True
        self.in_head = self.in_request = False
        if self.exchange is None and not self._waiting:
            self._send_refusal()

    def refuse_slow(self) -> None:
        """The request did not arrive in time."""
        self._refuse(BadRequest(408, "the request did not arrive in time", "timeout"))

    def _send_refusal(self) -> None:
        if self._refusal:
            self.transport.write(self._refusal)
            self._refusal = b""
        self.transport.close()

    def _drop_nominated(self) -> None:
        """Connection may name further headers that are for this hop only."""
        nominated = {
            token.strip() for token in self._connection.split(b",") if token.strip() not in HOP_BY_HOP
        } - {b"close", b"upgrade", b""}
        if nominated:
            self._lines = [
                line for line in self._lines if line.split(b":", 1)[0].lower() not in nominated
            ]

    def _upgraded(self, rest: bytes) -> None:
        """The parser has stopped at a request to switch protocols."""
        if not self._downgrade:
            # What a client sends before the switch is confirmed waits in the exchange.
            if rest and self.exchange is not None:
                self.exchange.early = rest
            return
        # Any protocol but WebSocket (a client asking for h2c) may be ignored: RFC 9110, 7.8. The parser
        # has skipped the body, so the head goes through a new one without its upgrade.
        method, lines = self._parser.get_method(), self._lines
        if self._content_length:
            lines = [*lines, b"content-length: " + self._content_length]
        if self._transfer:
            lines = [*lines, b"transfer-encoding: chunked"]
        if self._expect:
            lines = [*lines, b"expect: 100-continue"]
        if self._request_id:
            lines = [*lines, b"x-request-id: " + self._request_id]
        head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n\r\n" % (
            method,
            self._url,
            self._host or b"",
            b"\r\n".join(lines),
        )
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(head.replace(b"\r\n\r\n\r\n", b"\r\n\r\n") + rest)


def _head_too_large(limit: int) -> BadRequest:
    return BadRequest(431, f"the request's head is larger than max_head allows ({limit} bytes)", "head_too_large")


def _body_too_large(limit: int) -> BadRequest:
    return BadRequest(413, f"the request's body is larger than max_body allows ({limit} bytes)", "too_large")

