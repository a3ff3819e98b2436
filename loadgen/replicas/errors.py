"""Refusals in the form vLLM gives them."""

from __future__ import annotations

from typing import Any

import msgspec

_KINDS = {
    400: "BadRequestError",
    404: "NotFoundError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class ApiError(Exception):
    """A request that gets an error body instead of an answer."""

    def __init__(
        self, status: int, message: str, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.kind = kind or _KINDS.get(status, "Error")

    def body(self, anthropic: bool = False, *, flat: bool = False) -> bytes:
        """The JSON body: OpenAI's shape, or Anthropic's for /v1/messages; flat: without `error`
        around it, as SGLang and TensorRT-LLM have it."""
        content: dict[str, Any]
        if flat and not anthropic:
            told = {"object": "error", "message": self.message, "type": self.kind}
            return msgspec.json.encode({**told, "param": self.param, "code": self.status})
        if anthropic:
            content = {
                "type": "error",
                "error": {"type": self.kind, "message": self.message},
            }
        else:
            content = {
                "error": {
                    "message": self.message,
                    "type": self.kind,
                    "param": self.param,
                    "code": self.status,
                }
            }
        return msgspec.json.encode(content)


def missing(field: str) -> ApiError:
    """The error for a required field that is absent."""
    return ApiError(
        400,
        "1 validation error:\n"
        f"  {{'type': 'missing', 'loc': 'body.{field}', 'msg': 'Field required'}}",
        f"body.{field}",
        "Bad Request",
    )


def invalid(field: str, message: str) -> ApiError:
    """A field has a wrong type or value."""
    return ApiError(400, f"{message} (parameter={field})", field)
