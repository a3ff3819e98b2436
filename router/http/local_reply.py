"""What the router answers by itself: errors in the API's own form, refusals, models, health."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from router.http.routes import Form, PathRule, Treatment, shown_path
from router.telemetry.record import Outcome
from router.tenants.answers import unauthorized

if TYPE_CHECKING:
    from router.fleet.fleet import Fleet
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.queue.ticket import Refusal
    from router.tenants.identity import AuthFailure, Identity

_encode = msgspec.json.Encoder().encode


# vLLM's own words where it has any; for other statuses it takes HTTP's.
_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
AUTHENTICATE = b"www-authenticate: Bearer\r\n"
"""The header line of every 401."""
INVALID = "Bad Request"
"""vLLM's type of a 400 where a body is not what its API takes."""


def error_body(
    form: Form,
    status: int,
    message: str,
    param: str | None = None,
    kind: str = "",
    code: str | None = None,
) -> bytes:
    """A whole error body, with vLLM's own types and codes: on all paths the same. code: a word
    instead of the status."""
    kind = kind or _TYPES.get(status) or HTTPStatus(status).phrase
    if form is Form.ANTHROPIC:
        return _encode({"type": "error", "error": {"type": kind, "message": message}})
    error = {"message": message, "type": kind, "param": param, "code": code or status}
    return _encode({"error": error})


def error_event(form: Form, message: str) -> bytes:
    """One server-sent event that tells of a failure in the middle of a stream.

    It begins with an empty line, which ends an event that was cut off half-way and is nothing
    otherwise.
    """
    if form is Form.ANTHROPIC:
        body = _encode({"type": "error", "error": {"type": "api_error", "message": message}})
        return b"\n\nevent: error\ndata: " + body + b"\n\n"
    if form is Form.RESPONSES:
        # OpenAI's reference has the fields flat, its service nested, where its client looks.
        error = {"type": "server_error", "code": "server_error", "message": message, "param": None}
        body = _encode({**error, "type": "error", "error": error})
        return b"\n\nevent: error\ndata: " + body + b"\n\n"
    body = error_body(form, 502, message)
    return b"\n\ndata: " + body + b"\n\n"


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

    is_http10: the client speaks HTTP/1.0, where a connection that stays open must be announced.
    extra: more header lines, each ended by CRLF.
    """
    if status >= 400 and body:
        # A terminal's prompt begins on a line of its own.
        body += b"\n"
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


# A connection is read for this long after its last answer: closed with unread bytes, TCP would
# reset it, and the client might never see the answer.
LINGER_S = 2.0


class BadRequest(Exception):  # noqa: N818
    """A request that cannot be served; the connection ends with this answer."""

    lines = b""
    """More header lines of the answer, each ended by CRLF."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def body(self, form: Form) -> bytes:
        """The error in the form of the API that was asked."""
        return error_body(form, self.status, str(self))


class Unauthorized(BadRequest):
    """Nobody knows who sends it: its body is not waited for."""

    lines = AUTHENTICATE

    def __init__(self, failure: AuthFailure) -> None:
        super().__init__(401, failure.message)
        self._refusal = unauthorized(failure)

    def body(self, form: Form) -> bytes:
        """The error in the form of the API that was asked."""
        return self._refusal.body(form is Form.ANTHROPIC)


def refusal(
    why: BadRequest, rule: PathRule, request_id: bytes, retry_after: bytes, extra: bytes
) -> bytes:
    """The whole answer, in the form of the API that was asked. extra: header lines of all own
    answers."""
    return answer(
        why.status,
        why.body(rule.form),
        request_id=request_id,
        close=True,
        extra=why.lines + (retry_after if why.status == 503 else b"") + extra,
    )


def linger(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
    """Close for writing after what was written; whatever the client still sends is for nobody."""
    if transport.is_closing():
        return
    if transport.can_write_eof():
        transport.write_eof()
        loop.call_later(LINGER_S, transport.abort)
    else:
        # TLS says good-bye by itself.
        transport.close()


def malformed(reason: str) -> BadRequest:
    """The parser could make nothing of it."""
    if "PRI" in reason:
        return BadRequest(505, "HTTP/2 is not spoken here; use HTTP/1.1")
    return BadRequest(400, f"malformed HTTP request: {reason}")


def head_too_large(limit: int) -> BadRequest:
    """Request line and headers."""
    message = f"the request's head is larger than max_head allows ({limit} bytes)"
    return BadRequest(431, message)


def gone_in_a_circle() -> BadRequest:
    """The router's own name is among those that have passed the request on."""
    message = (
        "the request has passed through this router before: one of its replicas leads back to it. "
        "Take that address out of replicas, or out of what discovery finds"
    )
    return BadRequest(508, message)


def body_too_large(limit: int) -> BadRequest:
    """Said by Content-Length, or found out."""
    message = f"the request's body is larger than max_body allows ({limit} bytes)"
    return BadRequest(413, message)


class Reply(msgspec.Struct, gc=False, frozen=True):
    """A whole answer of the router's own, but for its head."""

    status: int
    body: bytes
    outcome: str = Outcome.OK
    extra: bytes = b""
    """More header lines, each ended by CRLF."""


def error_reply(
    form: Form,
    status: int,
    message: str,
    outcome: str,
    *,
    param: str | None = None,
    kind: str = "",
    code: str | None = None,
    extra: bytes = b"",
) -> Reply:
    """An error in the form of the API that was asked. extra: more header lines."""
    return Reply(status, error_body(form, status, message, param, kind, code), outcome, extra)


_METHODS = (b"GET", b"HEAD", b"OPTIONS")
_ALLOW = b"allow: GET, HEAD, OPTIONS\r\n"
# Platforms that host models probe so, and the engine takes it.
_PING = (b"POST", "/ping")


def whole(
    reply: Reply, request: Request, gateway: Gateway, lines: bytes, *, keep_alive: bool
) -> bytes:
    """A reply with its head, as it is written. lines: more of them."""
    retry_after = gateway.retry_after if reply.status == 503 else b""
    return answer(
        reply.status,
        reply.body,
        request_id=request.request_id,
        close=not keep_alive,
        is_http10=request.is_http10,
        head_only=request.method == b"HEAD",
        extra=reply.extra + lines + retry_after + gateway.allow_origin,
    )


def reply_locally(gateway: Gateway, request: Request, identity: Identity | None = None) -> Reply:
    """The answer of /v1/models, /health and the paths that are refused on the front port.

    identity: whose request it is; None without tenants.
    """
    rule, fleet = request.rule, gateway.fleet
    if rule.treatment is Treatment.REFUSE:
        path = shown_path(request.target)
        message = f"{path} is not served on this port: {rule.why}"
        return error_reply(rule.form, rule.status, message, Outcome.REFUSED_PATH)
    if request.method not in _METHODS and (request.method, rule.path) != _PING:
        # As an engine says it, which is not in the form of its other errors.
        body = b'{"detail":"Method Not Allowed"}'
        return Reply(405, body, Outcome.BAD_REQUEST, _ALLOW)
    if request.method == b"OPTIONS":
        return Reply(204, b"", extra=_ALLOW + _preflight(gateway, request))
    if rule.treatment is Treatment.MODELS:
        if fleet.models_known:
            body = fleet.models_body()
            if identity is not None and identity.models is not None:
                body = _only(body, identity.models)
            return Reply(200, body)
        message = "no replica has told its models yet; try again"
    elif gateway.closing:
        # Load balancers that probe the serving port must look elsewhere from now on.
        return error_reply(rule.form, 503, "the router is stopping", Outcome.DRAINING)
    elif fleet.usable or gateway.settings.hold_timeout:
        return Reply(200, b"{}")
    else:
        message = "no replica is available just now"
    return error_reply(rule.form, 503, message, Outcome.NO_REPLICA)


def _only(models: bytes, allowed: frozenset[str]) -> bytes:
    """The list of models, as far as a key may use them."""
    tree = msgspec.json.decode(models)
    tree["data"] = [card for card in tree["data"] if card["id"] in allowed]
    return msgspec.json.encode(tree)


def _preflight(gateway: Gateway, request: Request) -> bytes:
    """The header lines of a CORS preflight's answer, where it is one and the setting allows it."""
    given = request.headers
    asked = {name.lower(): value for name, value in zip(given[::2], given[1::2], strict=True)}
    if not gateway.allow_origin or b"access-control-request-method" not in asked:
        return b""
    lines = b"access-control-allow-methods: GET, HEAD, OPTIONS\r\naccess-control-max-age: 600\r\n"
    wanted = asked.get(b"access-control-request-headers", b"")
    # By name: a wildcard would leave out Authorization.
    return lines + b"access-control-allow-headers: %b\r\n" % wanted if wanted else lines


def no_replica(fleet: Fleet, form: Form, model: str, serving: int) -> Reply:
    """No replica may be sent this. serving: the mask of those that serve its model at all."""
    if not serving and model and fleet.models_known and not fleet.may_come(model):
        message = f"The model `{model}` does not exist."
        if not fleet.guarded:
            message += f" Valid aliases: {fleet.model_names()}."
        return error_reply(form, 404, message, Outcome.UNKNOWN_MODEL, param="model")
    what = f"No replica that serves `{model}`" if model else "No replica"
    message = f"{what} is available just now; try again."
    return error_reply(form, 503, message, Outcome.NO_REPLICA)


def model_required(fleet: Fleet, form: Form) -> Reply:
    """A request that names no model might go to a replica of another one."""
    message = "'model' is required: the replicas serve different models."
    if not fleet.guarded:
        message += f" Models served here: {fleet.model_names()}."
    return error_reply(form, 400, message, Outcome.BAD_REQUEST, param="model")


_REFUSED: Final = {
    "late": "its first token is expected too late",
    "full": "as many requests wait as queue_limit allows",
    "expired": "it has waited for queue_timeout",
    "draining": "the router is stopping",
    "no_replica": "no replica that serves it is available any more",
}
_REFUSED_AS: Final = {"draining": Outcome.DRAINING, "no_replica": Outcome.NO_REPLICA}
_COME_AGAIN: Final = frozenset(("late", "full"))
"""Answered with 429, which no proxy takes for a router that is unwell. The others get 503."""


def refusal_reply(form: Form, refusal: Refusal) -> Reply:
    """The answer to a request that was refused, in the form of the API that was asked."""
    why = refusal.why
    message = f"The router does not send this request on: {_REFUSED[why]}."
    outcome = _REFUSED_AS.get(why, Outcome.OVERLOADED)
    if why not in _COME_AGAIN:
        code = "overloaded" if outcome is Outcome.OVERLOADED else None
        return error_reply(form, 503, message, outcome, code=code)
    after = max(1, -int(-refusal.retry_after // 1))
    message += f" {refusal.expected:.1f} s of work are before it; come again in {after} s."
    return error_reply(
        form,
        429,
        message,
        outcome,
        kind="overloaded_error" if form is Form.ANTHROPIC else "",
        code="overloaded",
        extra=b"retry-after: %d\r\n" % after,
    )
