"""Error answers in the form of the API that was asked: OpenAI's, or Anthropic's for
/v1/messages."""

from __future__ import annotations

from enum import Enum

import msgspec

_encode = msgspec.json.Encoder().encode


class Form(Enum):
    """Whose error form and stream events a path speaks."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI_TYPES = {
    403: "PermissionDeniedError",
    404: "NotFoundError",
    413: "RequestTooLarge",
    501: "BadRequestError",
    503: "ServiceUnavailableError",
    505: "BadRequestError",
}


def error_body(
    form: Form, status: int, message: str, code: str | None = None, param: str | None = None
) -> bytes:
    """A whole error body. Sources: OpenAI's and Anthropic's API references, "Errors"."""
    if form is Form.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(
            status, "invalid_request_error" if status < 500 else "api_error"
        )
        return _encode({"type": "error", "error": {"type": kind, "message": message}})
    kind = _OPENAI_TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
    return _encode(
        {"error": {"message": message, "type": kind, "param": param, "code": code or status}}
    )


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
    body = error_body(form, 502, message, code="replica_died")
    return b"\n\ndata: " + body + b"\n\n"
