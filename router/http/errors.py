"""Error answers in the form of the API that was asked: OpenAI's, or Anthropic's for
/v1/messages."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus

import msgspec

_encode = msgspec.json.Encoder().encode


class Form(Enum):
    """Whose error form and stream events a path speaks."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


# vLLM's own words where it has any; for other statuses it takes HTTP's.
_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}
INVALID = "Bad Request"
"""vLLM's type of a 400 where a body is not what its API takes."""


def error_body(
    form: Form, status: int, message: str, param: str | None = None, kind: str = ""
) -> bytes:
    """A whole error body, with vLLM's own types and codes: on all paths the same."""
    kind = kind or _TYPES.get(status) or HTTPStatus(status).phrase
    if form is Form.ANTHROPIC:
        return _encode({"type": "error", "error": {"type": kind, "message": message}})
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


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
