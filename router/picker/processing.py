"""One call of the data plane's: the messages about one request, in the order of its protocol.

With FULL_DUPLEX_STREAMED bodies nothing is answered before the request is whole: then come the
headers with the choice, and the body, piece by piece. With BUFFERED ones the headers are answered
at once, and the body with the choice. Every piece of an answer goes back as it came.
"""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from router.diagnosis.agents import AGENT_HEADER
from router.http.choosing import EVERYWHERE
from router.http.client_connection import request_id
from router.http.local_reply import Reply, body_too_large
from router.http.queueing import queue_headers
from router.http.request import Request
from router.picker import messages
from router.picker.grpc import INTERNAL, INVALID_ARGUMENT, Call
from router.picker.messages import (
    BUFFERED,
    BUFFERED_PARTIAL,
    DIRECTING,
    FULL_DUPLEX_STREAMED,
    PREFILLER,
    Change,
)
from router.picker.pick import Pick
from router.queue.classes import HEADERS, Hints
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.gateway import Gateway
    from router.picker.endpoints import Endpoints
    from router.picker.unseen import Unseen

_BUFFERED: Final = (BUFFERED, BUFFERED_PARTIAL)
_SHOWN: Final = (BUFFERED, FULL_DUPLEX_STREAMED)
"""Modes in which all of a body is shown before the choice."""


class _Phase(Enum):
    """How far a call is."""

    HEAD = "head"
    """The request's headers have not come."""
    BODY = "body"
    """The request's body comes."""
    CHOICE = "choice"
    """The request is whole, and nothing was chosen yet."""
    REPLY = "reply"
    """The data plane has the choice: what comes is of the answer."""
    OVER = "over"
    """The client was answered from here."""


_HEAD, _BODY, _CHOICE, _REPLY, _OVER = _Phase


class Processing:
    """Implements ``router.picker.grpc.Handler`` and ``router.picker.pick.Door``."""

    __slots__ = (
        "_body",
        "_body_ended",
        "_body_mode",
        "_call",
        "_directing",
        "_endpoints",
        "_gateway",
        "_open",
        "_phase",
        "_pick",
        "_reply_mode",
        "_silent",
        "_trailers",
        "_unseen",
    )

    def __init__(
        self,
        gateway: Gateway,
        endpoints: Endpoints,
        unseen: Unseen,
        call: Call,
        calls: set[Processing],
    ) -> None:
        """calls: all that are open."""
        self._gateway = gateway
        self._unseen = unseen
        self._endpoints = endpoints
        self._call = call
        self._open = calls
        calls.add(self)
        self._pick: Pick | None = None
        self._phase = _HEAD
        self._body: list[bytes] = []
        self._body_ended = False
        """The body's own last piece has come, rather than trailers after it."""
        self._body_mode = self._reply_mode = FULL_DUPLEX_STREAMED
        self._directing: tuple[str, ...] = ()
        """Headers of the client's that tell a sidecar where to connect."""
        self._trailers = False
        """The data plane waits for word on the request's trailers."""
        self._silent = False
        """The data plane takes no answers (observability_mode)."""

    # -- what comes

    def message(self, data: bytes) -> None:
        """One message of the data plane's."""
        try:
            asked = messages.read(data)
        except ValueError:
            self._call.fail(INVALID_ARGUMENT, "no ProcessingRequest")
            return
        kind = asked.WhichOneof("request")
        pick = self._pick
        if kind == "request_headers":
            self._request_headers(asked)
        elif pick is None:
            self._call.fail(INVALID_ARGUMENT, "a call begins with request_headers")
        elif kind == "request_body":
            self._request_body(pick, asked.request_body)
        elif kind == "response_headers":
            self._response_headers(pick, asked)
        elif kind == "response_body":
            self._response_body(pick, asked.response_body)
        elif kind == "request_trailers":
            self._request_trailers(pick)
        elif kind == "response_trailers":
            self._answer(messages.RESPONSE_TRAILERS_GO_ON)
            pick.answered()

    def half_closed(self) -> None:
        """The data plane says no more of this request."""
        self._call.finish()
        self.gone()

    def gone(self) -> None:
        """The call is over."""
        self._open.discard(self)
        self._body = []
        pick, self._pick = self._pick, None
        if pick is None:
            return
        shown = self._reply_mode != messages.NONE
        if shown or self._phase is not _REPLY or (not pick.headed and self._unseen.heads):
            pick.gone()
        else:
            pick.unseen(self._unseen)

    @property
    def is_stream(self) -> bool:
        """A streamed answer is on its way."""
        return self._pick is not None and self._pick.is_stream

    # -- the request

    def _request_headers(self, asked: Any) -> None:
        if self._pick is not None:
            self._call.fail(INVALID_ARGUMENT, "request_headers came twice")
            return
        if asked.HasField("protocol_config"):
            self._body_mode = asked.protocol_config.request_body_mode
            self._reply_mode = asked.protocol_config.response_body_mode
        self._silent = asked.observability_mode
        gateway, given = self._gateway, asked.request_headers
        request = self._read(given.headers.headers)
        names = messages.subset_of(asked)
        mask = EVERYWHERE if names is None else self._endpoints.mask(names)
        self._pick = pick = Pick(
            gateway,
            request,
            self._endpoints,
            self,
            mask,
            body_shown=self._body_mode in _SHOWN or given.end_of_stream,
            first_token_shown=self._reply_mode in (messages.STREAMED, FULL_DUPLEX_STREAMED),
        )
        self._phase = _BODY
        if len(self._open) > gateway.most_clients:
            why = "the picker has as many requests open as max_connections allows"
            pick.refuse(503, why, Outcome.OVERLOADED)
        elif given.end_of_stream:
            self._body_ended = True
            self._whole(pick)
        elif self._body_mode in _BUFFERED:
            self._answer(messages.REQUEST_HEADERS_GO_ON)
        elif self._body_mode != FULL_DUPLEX_STREAMED:
            # The body is not shown, or must not be waited for: it is placed by load.
            self._whole(pick)

    def _read(self, headers: Any) -> Request:
        """The request's head."""
        gateway, request = self._gateway, Request()
        kept = request.headers
        sessions = gateway.session_headers
        for header in headers:
            name = header.key
            value = header.raw_value or header.value.encode()
            if name == ":path":
                request.target = value
            elif name == ":method":
                request.method = value
            elif name == "x-request-id":
                request.request_id = value
            elif name in DIRECTING:
                self._directing += (name,)  # where a sidecar connects is no client's to say
            elif name == "x-warmroute-explain":
                request.explain = gateway.settings.explain_headers
            elif name[0] != ":":
                key = name.encode()
                if key in HEADERS:
                    if request.hints is None:
                        request.hints = Hints()
                    setattr(request.hints, HEADERS[key], value)
                if key in sessions:
                    request.names_session(sessions[key], value)
                elif key == AGENT_HEADER:
                    request.agent = value
                kept += (key, value)
        request.rule = gateway.paths.rule(request.target)
        request.request_id = request_id(request.request_id)
        request.started = monotonic()
        return request

    def _request_body(self, pick: Pick, given: Any) -> None:
        if self._phase is not _BODY:
            # Of a body that is not waited for, or of a request that was refused.
            if self._body_mode == FULL_DUPLEX_STREAMED and self._phase is _REPLY:
                self._call.fail(INVALID_ARGUMENT, "more of a body came after its end")
            elif self._phase is _REPLY:
                self._answer(messages.REQUEST_BODY_GOES_ON)
            return
        body, request, live = given.body, pick.request, self._gateway.live
        settings = self._gateway.settings
        if body:
            self._body.append(body)
            request.body_size += len(body)
            live.body_bytes += len(body)
            if request.body_size > settings.max_body:
                why = str(body_too_large(settings.max_body))
                pick.refuse(413, why, Outcome.TOO_LARGE)
                return
            if live.body_bytes > settings.body_memory:
                why = "the picker holds as many request bodies as body_memory allows"
                pick.refuse(503, why, Outcome.OVERLOADED)
                return
        if given.end_of_stream:
            self._body_ended = True
        elif self._body_mode == BUFFERED_PARTIAL:
            # More than Envoy buffers: the beginning alone cannot be read.
            self._body = []
        if given.end_of_stream or self._body_mode in _BUFFERED:
            self._whole(pick)

    def _request_trailers(self, pick: Pick) -> None:
        self._trailers = True
        if self._phase is _BODY and self._body_mode == FULL_DUPLEX_STREAMED:
            self._whole(pick)
        elif self._phase is _REPLY:
            self._answer(messages.REQUEST_TRAILERS_GO_ON)

    def _whole(self, pick: Pick) -> None:
        """The request is whole, as far as it is shown."""
        self._phase = _CHOICE
        request, body = pick.request, self._body
        if body:
            request.body = body[0] if len(body) == 1 else b"".join(body)
        request.started = monotonic()
        pick.start()

    # -- what the pick tells: router.picker.pick.Door

    def picked(self, pick: Pick) -> None:
        """A replica was chosen: tell the data plane."""
        self._phase = _REPLY
        names, replica = self._endpoints.names, pick.replica
        assert replica is not None
        headers: tuple[tuple[str, bytes], ...] = ()
        if replica.rank_header:
            name, _, value = replica.rank_header.partition(b":")
            headers = ((name.decode(), value.strip()),)
        if pick.traceparent:
            headers += (("traceparent", pick.traceparent),)
        if pick.prefill:
            headers += ((PREFILLER, pick.prefill.encode()),)
        given, body = self._body, pick.request.body
        self._body = []
        # Fields that clients must not set were taken out of it.
        changed = bool(body) and len(body) != sum(map(len, given))
        if changed:
            headers += (("content-length", b"%d" % len(body)),)
        endpoints = ",".join(names[slot] for slot in pick.offered)
        # A header that is overwritten is not taken out.
        strip = tuple(name for name in self._directing if not pick.prefill or name != PREFILLER)
        change = Change(endpoints, headers, strip)
        if self._body_mode in _BUFFERED and not self._headers_only(given):
            self._answer(messages.body_changed(change, body if changed else None))
        else:
            # With headers of its own, no other request's is the same.
            own = headers or change.strip
            made = messages.headers_changed if own else messages.headers_as_before
            self._answer(made(change))
            if given:
                self._send_body([body] if changed else given)
        if self._trailers:
            self._answer(messages.REQUEST_TRAILERS_GO_ON)

    def _headers_only(self, given: list[bytes]) -> bool:
        """Whether the data plane still waits for word on the headers."""
        return self._body_ended and not given

    def _send_body(self, body: list[bytes]) -> None:
        parts = messages.pieces(body)
        last = len(parts) - 1
        for number, part in enumerate(parts):
            final = number == last and self._body_ended
            self._answer(messages.request_piece(part, last=final))

    def refused(self, reply: Reply) -> None:
        """The client gets this answer."""
        pick = self._pick
        assert pick is not None
        self._phase = _OVER
        self._body = []
        headers = [("content-type", b"application/json")] if reply.body else []
        headers += [("x-request-id", pick.request.request_id)]
        lines = reply.extra + self._gateway.allow_origin
        if reply.status == 503:
            lines += self._gateway.retry_after
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                headers.append((name.decode(), value.strip()))
        details = f"warmroute_{reply.outcome}"
        self._answer(messages.immediate(reply.status, reply.body, headers, details))

    def broken(self) -> None:
        """The picker has failed: the data plane does what it is set up to do then."""
        self._call.fail(INTERNAL, "the picker failed on this request")

    # -- the answer

    def _response_headers(self, pick: Pick, asked: Any) -> None:
        given = asked.response_headers
        status, kind, encoding = 0, b"", b""
        for header in given.headers.headers:
            name = header.key
            if name == ":status":
                status = int(header.raw_value or header.value or 0)
            elif name == "content-type":
                kind = (header.raw_value or header.value.encode()).lower()
            elif name == "content-encoding":
                encoding = (header.raw_value or header.value.encode()).lower()
        if self._phase is _REPLY:
            if self._reply_mode == messages.NONE:
                self._unseen.heads = True
            pick.answered_by(messages.served_of(asked), status, kind, encoding)
            if given.end_of_stream:
                pick.answered()
        if pick.request.explain and pick.placement is not None:
            self._answer(messages.response_headers_with(self._explained(pick)))
        else:
            self._answer(messages.RESPONSE_HEADERS_GO_ON)

    def _explained(self, pick: Pick) -> list[tuple[str, bytes]]:
        """Headers that name what was chosen and expected, for a client that asked."""
        placement, replica, ticket = pick.placement, pick.replica, pick.ticket
        assert placement is not None
        assert replica is not None
        told = queue_headers(ticket) if ticket is not None else []
        return [
            ("x-warmroute-replica", replica.name.encode()),
            ("x-warmroute-predicted-tokens", b"%d" % int(placement.held_tokens)),
            ("x-warmroute-reason", placement.reason.encode()),
            *zip((name.decode() for name in told[::2]), told[1::2], strict=True),
        ]

    def _response_body(self, pick: Pick, given: Any) -> None:
        body, last = given.body, given.end_of_stream
        if self._reply_mode == FULL_DUPLEX_STREAMED:
            drain = self._gateway.closing
            while len(body) > messages.PIECE:
                part, body = body[: messages.PIECE], body[messages.PIECE :]
                self._answer(messages.response_piece(part, last=False, drain=drain))
            self._answer(messages.response_piece(body, last=last, drain=drain))
        else:
            self._answer(messages.RESPONSE_BODY_GOES_ON)
        if given.body:
            pick.shown(given.body)
        if last:
            pick.answered()

    def _answer(self, message: bytes) -> None:
        if not self._silent:
            self._call.answer(message)
