"""The client's side of the gateway: bytes of a connection -> requests, one exchange at a time.

The mutable state on a connection is: the head and body being parsed, the requests parsed and
waiting for their turn (pipelining), and the exchange in progress. Answers go out in the order of
the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools
import msgspec

from router.http import admission
from router.http.exchange import Exchange
from router.http.heads import KnownHead, known_head, take_special
from router.http.local_reply import (
    BadRequest,
    body_too_large,
    head_too_large,
    linger,
    malformed,
    refusal,
)
from router.http.request import Request
from router.http.routes import UNKNOWN, PathRule, origin_form
from router.http.tunnel import Early, switches, without_upgrade

if TYPE_CHECKING:
    from router.http.gateway import Gateway
    from router.tenants.tenants import Tenants

log = logging.getLogger(__name__)

# Pipelined requests that may wait on one connection before it is not read any more, and those that
# one read may hold beyond them.
_PIPELINE = 16
_PIPELINE_MAX = 1000

# Pieces of a body that are smaller go into one buffer, which grows: as objects of their own they
# would take many times what is counted.
_LARGE = 4096

# SO_LINGER: on, no time.
_RESET = struct.pack("ii", 1, 0)

# Connections beyond the limit that are told so before they are closed; further ones are not, since
# each takes an open file until its client has read that.
_TOLD = 16

# Heads in a row that are not like the one before: from then on all go through the parser.
_UNLIKE = 4
_DIGITS = 18

_TRAILERS: frozenset[bytes] = frozenset()


_boot = os.urandom(5).hex().encode()
_count = itertools.count(1)
_good_id = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}\Z").match


def request_id(given: bytes) -> bytes:
    """The client's X-Request-Id where it is fit to be logged and sent on, else a new one."""
    if given and _good_id(given):
        return given
    return b"wr-%b-%x" % (_boot, next(_count))


class ClientConnection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_clients",
        "_close_after",
        "_downgrade",
        "_drops",
        "_feeding",
        "_gateway",
        "_head_size",
        "_headers",
        "_identifying",
        "_known",
        "_mark",
        "_messages",
        "_parser",
        "_refusal",
        "_request",
        "_shed",
        "_special",
        "_unlike",
        "_waiting",
        "exchange",
        "idle_ticks",
        "in_body",
        "in_head",
        "in_request",
        "paused",
        "request_ticks",
        "transport",
    )

    def __init__(self, gateway: Gateway, clients: set[ClientConnection]) -> None:
        """clients: the connections that are open, this one among them from now on."""
        self._gateway = gateway
        self._clients = clients
        self._waiting: list[Request] = []
        self._close_after = False
        self._refusal = b""
        self._special = gateway.special_headers
        self._request = Request()
        self._body: list[bytes | bytearray] = []
        self._mark = 0
        self._shed = False
        self._downgrade = False
        self._drops = False
        self._identifying: asyncio.Task[None] | None = None
        self._feeding = 0
        self._head_size = 0
        self._messages = 0
        self._known: KnownHead | None = None
        self._unlike = 0
        self.exchange: Exchange | None = None
        self.in_head = False
        """In a head, or between a chunk's size and its first byte, where trailers may be."""
        self.in_request = False
        self.in_body = False
        """The request's head is whole, its body is not."""
        self.paused = False
        self.idle_ticks = 0
        """Sweeps since a request was here, or the client took something."""
        self.request_ticks = 0
        """Sweeps since the current head began to arrive, or the body was last measured."""
        self._parser = httptools.HttpRequestParser(self)

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = transport = cast(asyncio.Transport, transport)
        gateway = self._gateway
        transport.set_write_buffer_limits(gateway.write_high, gateway.write_low)
        if not gateway.has_room(transport.get_extra_info("socket").fileno()):
            self._turn_away()
            return
        self._clients.add(self)
        gateway.live.connections += 1

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        fresh = not self.in_request and self._unlike < _UNLIKE
        if fresh and self._known is not None and self._take_known(self._known, data):
            return
        self._messages = 0
        # More than once only where a request to switch protocols was an ordinary one after all.
        while data and not self._close_after:
            self._feeding = len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                data = self._upgraded(data[exc.args[0] :])
            except httptools.HttpParserCallbackError as exc:
                self._refuse(self._cause(exc.__context__))
            except httptools.HttpParserError as exc:
                self._refuse(malformed(str(exc)))
            else:
                if self.in_head:
                    self._count_head(len(data))
                elif fresh and self._messages == 1 and not self.in_request:
                    self._unlike += 1
                    self._known = known_head(self._request, data, self._gateway.tenants is not None)
                return

    def _take_known(self, known: KnownHead, data: bytes) -> bool:
        """A whole request in one read, whose head is the last one's but for the body's length."""
        before, after = known.before, known.after
        if self._close_after or not data.startswith(before):
            return False
        at = len(before)
        stop = data.find(b"\r", at)
        if not data.startswith(after, stop):
            return False
        begin = stop + len(after)
        length = data[at:stop]
        if not length.isdigit() or len(length) > _DIGITS or int(length) != len(data) - begin:
            return False
        self._unlike = 0
        like = known.request
        self._request = request = msgspec.structs.replace(like, headers=[*like.headers])
        self.in_request = True
        try:
            self.on_body(data[begin:])
            self._complete(request)
        except Exception as exc:
            self._refuse(self._cause(exc))
        return True

    def forget_head(self) -> None:
        """What was made of the last head holds no more."""
        self._known = None

    def eof_received(self) -> bool:
        """The client closed its side: nobody is there to read an answer."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone: so is what it asked for."""
        gateway = self._gateway
        if self in self._clients:
            self._clients.discard(self)
            gateway.live.connections -= 1
        elif self._shed:
            gateway.shed -= 1
        gateway.live.body_bytes -= sum(request.body_size for request in self._waiting)
        if self.in_request:
            gateway.live.body_bytes -= self._request.body_size
            self.in_request = False
        self._waiting.clear()
        if self._identifying is not None:
            self._identifying.cancel()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        # The parser knows this connection and this connection the parser: break the circle.
        self._parser = None  # type: ignore[assignment]

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
        elif self._waiting:
            self._gateway.loop.call_soon(self._next)

    # -- parser

    def on_message_begin(self) -> None:
        """A request line begins."""
        self._request = Request()
        self._messages += 1
        self._known = None
        self._head_size = 0
        self.in_head = self.in_request = True
        self.in_body = False
        self.request_ticks = 0

    def on_url(self, url: bytes) -> None:
        """The request target, or a piece of it."""
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        low = name.lower()
        if low not in self._special:
            headers = self._request.headers
            headers.append(name)
            headers.append(value)
        else:
            take_special(self._gateway, self._request, low, name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: refuse here what must not go further."""
        self.in_head = False
        self.in_body = True
        self.request_ticks = self._mark = 0
        request = self._request
        settings = self._gateway.settings
        if (
            self._head_size + self._feeding > settings.max_head
            and request.head_size > settings.max_head
        ):
            raise head_too_large(settings.max_head)
        version = self._parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise BadRequest(505, f"HTTP/{version} is not spoken here")
            request.is_http10 = True
        elif request.host is None:
            raise BadRequest(400, "the Host header is missing")
        if request.connection:
            request.drop_nominated()
        if request.upgrade:
            self._downgrade = not switches(request, self._parser)
        if request.transfer:
            if request.is_http10:
                raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
            if request.transfer.strip(b", ") != b"chunked":
                raise BadRequest(501, "the only transfer coding the router knows is chunked")
            if not self._downgrade:
                # What else comes as a header is a trailer, which is dropped.
                self._special = _TRAILERS
                self._headers, request.headers = request.headers, []
        elif request.content_length and int(request.content_length) > settings.max_body:
            raise body_too_large(settings.max_body)
        if self._gateway.tenants is not None and (request.transfer or request.content_length):
            self._recognise(request)
        if request.expect and not self._downgrade and self._identifying is None:
            self._continue()

    def _recognise(self, request: Request) -> None:
        """With tenants, a body is kept only of those who are known, and where it says something."""
        gateway = self._gateway
        assert gateway.tenants is not None
        self._drops = admission.is_open(self._rule(request), self._parser.get_method())
        if not self._drops and not admission.recognised(gateway.tenants, request, self):
            self._identifying = gateway.spawn(self._recognise_later(gateway.tenants, request))
            self.transport.pause_reading()

    async def _recognise_later(self, tenants: Tenants, request: Request) -> None:
        try:
            await admission.recognise_later(tenants, request)
        except BadRequest as why:
            # Of one that is whole already, its exchange finds out the same.
            if self.in_request and self._request is request:
                self._refuse(why)
        finally:
            # Not where one that came behind it is looked at as well.
            if self._identifying is asyncio.current_task():
                self._identifying = None
                if not self.transport.is_closing():
                    self.transport.resume_reading()
                    if self.in_request and self._request.expect:
                        self._continue()

    def on_chunk_header(self) -> None:
        """A chunk begins, or trailers do."""
        self.in_head = True
        self._head_size = 0

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.in_head = False
        if self._drops:
            return
        size = len(body)
        gateway = self._gateway
        live = gateway.live
        live.body_bytes += size
        self._request.body_size = total = self._request.body_size + size
        if total > gateway.settings.max_body:
            raise body_too_large(gateway.settings.max_body)
        if live.body_bytes > gateway.settings.body_memory:
            why = "the router holds as many request bodies as body_memory allows"
            raise BadRequest(503, why)
        pieces = self._body
        if not pieces or size >= _LARGE:
            pieces.append(body)
        elif type(pieces[-1]) is bytearray:
            pieces[-1] += body
        else:
            pieces.append(bytearray(body))

    def on_message_complete(self) -> None:
        """A whole request has arrived."""
        self.in_head = self._drops = False
        if self._downgrade:
            return
        parser, request = self._parser, self._request
        request.method = method = parser.get_method()
        if method == b"CONNECT":
            raise BadRequest(405, "CONNECT is not served here")
        request.rule = self._rule(request)
        if request.transfer:
            request.headers = self._headers
            self._special = self._gateway.special_headers
        request.keep_alive = parser.should_keep_alive() and not request.upgrade
        self._complete(request)

    def _complete(self, request: Request) -> None:
        body = self._body
        if body:
            request.body = b"".join(body) if len(body) > 1 else bytes(body[0])
            self._body = []
        request.request_id = request_id(request.request_id)
        request.started = monotonic()
        self.in_request = False
        if self.exchange is None and not self._waiting and not self.paused:
            self._begin(request)
        else:
            self._wait(request)

    def _rule(self, request: Request) -> PathRule:
        """What is done with its path, which has its origin form from now on."""
        target = request.target
        if target[:1] != b"/":
            try:
                request.target = target = origin_form(target, self._parser.get_method())
            except ValueError:
                raise BadRequest(400, "the request's target is no path and no http URL") from None
        paths = self._gateway.paths
        return paths.exact.get(target) or paths.rule(target)

    # -- turns

    def _begin(self, request: Request) -> None:
        self.exchange = exchange = Exchange(self._gateway, self, request)
        try:
            exchange.start()
        except Exception as exc:  # a policy may be anybody's code
            exchange.crashed(exc)

    def _wait(self, request: Request) -> None:
        waiting = self._waiting
        if len(waiting) == _PIPELINE_MAX:
            self._gateway.live.body_bytes -= request.body_size
            raise BadRequest(400, f"more than {_PIPELINE_MAX} requests sent without an answer read")
        waiting.append(request)
        if len(waiting) >= _PIPELINE:
            self.transport.pause_reading()

    def _next(self) -> None:
        if (
            self.exchange is None
            and self._waiting
            and not self.paused
            and not self.transport.is_closing()
        ):
            request = self._waiting.pop(0)
            if len(self._waiting) == _PIPELINE - 1:
                self.transport.resume_reading()
            self._begin(request)

    def exchange_ended(self, keep_alive: bool) -> None:
        """The answer has been handed to the transport in full (or the connection is of no more
        use)."""
        self.exchange = None
        if not keep_alive:
            self.close()
        elif self._waiting:
            # Not at once: a long queue of local answers must not nest ever deeper.
            self._gateway.loop.call_soon(self._next)
        elif self._refusal:
            self._send_refusal()
        elif self.in_request and self._request.expect and not self.in_head:
            self._continue()

    def _continue(self) -> None:
        """Tell a client that waits for it to send its body, when its turn has come."""
        request = self._request
        if self.exchange is None and not (self._waiting or request.body_size or request.is_http10):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def close(self) -> None:
        """Send what is still to be sent, then close."""
        self._close_after = True
        self.transport.close()

    def reset(self) -> None:
        """Close so that the client cannot take it for the end of an answer without a length."""
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    @property
    def peer(self) -> str:
        """The client's address; empty where it has none."""
        name = self.transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def idle(self) -> bool:
        """Nothing of a request has arrived and nothing is being answered."""
        return (
            self.exchange is None
            and not self.in_request
            and not self._waiting
            and not self._close_after
        )

    @property
    def finished(self) -> bool:
        """Closed, with nothing left to send."""
        return self.transport.is_closing() and not self.transport.get_write_buffer_size()

    # -- refusals and special cases

    def _cause(self, cause: BaseException | None) -> BadRequest:
        """cause: what was raised while a request was read."""
        if isinstance(cause, BadRequest):
            return cause
        log.error("a request could not be read", exc_info=cause)
        return BadRequest(500, "the router failed on this request")

    def _refuse(self, why: BadRequest) -> None:
        gateway, request = self._gateway, self._request
        if self.in_request:
            gateway.live.body_bytes -= request.body_size
            self.in_request = False
        self.in_head = False
        self._body = []
        rule = gateway.paths.rule(request.target) if request.target[:1] == b"/" else UNKNOWN
        request.request_id = request_id(request.request_id)
        gateway.bad_request(rule, why.status, request.request_id)
        self._refusal = refusal(
            why, rule, request.request_id, gateway.retry_after, gateway.allow_origin
        )
        self._close_after = True
        if self.exchange is None and not self._waiting:
            self._send_refusal()
        else:
            # Read on, to hear the client leave.
            self.transport.resume_reading()

    def _turn_away(self) -> None:
        """There is no room for this client."""
        gateway = self._gateway
        if gateway.shed >= _TOLD:
            self._close_after = True
            gateway.bad_request(UNKNOWN, 503, request_id(b""))
            self.transport.abort()
            return
        gateway.shed += 1
        self._shed = True
        why = "the router has as many connections as max_connections, or its open files, allow"
        self._refuse(BadRequest(503, why))

    @property
    def held_back(self) -> bool:
        """The request cannot arrive: the router does not read, or has not asked for it yet."""
        waiting = len(self._waiting)
        return (
            waiting >= _PIPELINE
            or self._identifying is not None
            or (self._request.expect and (self.exchange is not None or waiting > 0))
        )

    def grew(self, least: int) -> bool:
        """Whether the body has grown by this much since it was last asked, and by anything."""
        before, self._mark = self._mark, self._request.body_size
        return self._mark - before >= max(1, least)

    def refuse_slow(self) -> None:
        """The request did not arrive in time."""
        self._refuse(BadRequest(408, "the request did not arrive in time"))

    def _send_refusal(self) -> None:
        self.transport.write(self._refusal)
        self._refusal = b""
        linger(self._gateway.loop, self.transport)

    def _count_head(self, size: int) -> None:
        """A read ended inside a head. Where in the read the head began is not known."""
        if self._head_size:
            self._head_size += size
        else:
            self._head_size = self._request.head_size + 1
        if self._head_size > self._gateway.settings.max_head:
            self._refuse(head_too_large(self._gateway.settings.max_head))

    def _upgraded(self, rest: bytes) -> bytes:
        """The parser has stopped at a request to switch protocols. Returns what to read on with."""
        if not self._downgrade:
            self._parser = Early(self.transport, rest)  # type: ignore[assignment]
            return b""
        self._downgrade = self.in_request = False
        head = without_upgrade(self._request, self._parser.get_method())
        self._parser = httptools.HttpRequestParser(self)
        return head + rest

    def early(self) -> bytes:
        """What the client sent before its switch of protocols was confirmed."""
        self.transport.resume_reading()
        parser: object = self._parser
        return parser.data if isinstance(parser, Early) else b""
