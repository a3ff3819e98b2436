"""What a balanced request asks for, from its body: JSON or a multipart form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from router.http.form import boundary_of, find_field
from router.prompt import Transfer, check_model, readable, utf8, without_transfer
from router.prompt.canonical import ABSENT, words

if TYPE_CHECKING:
    from router.http.request import Request

# A longer value of a form's field is no model's name, and too long to be one anyway.
_LONGEST_VALUE = 4096


class _Named(Transfer, gc=False):
    # Not str: of a name given twice the last one counts, whatever the first was.
    model: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(_Named).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def model_of(request: Request, *, trust: bool) -> str:
    """The model's name; empty where the body names none that can be read.

    Takes fields for KV transfer out of the request's body, unless they are trusted. Raises
    PromptError for a name that is too long.
    """
    body = request.body
    boundary = boundary_of(request.headers)
    if boundary:
        if not trust:
            request.body = body = _form_without_transfer(body, boundary)
        field = find_field(body, boundary, b"model")
        if field is None:
            return ""
        name = body[field.start : min(field.end, field.start + _LONGEST_VALUE)]
        model = name.decode("utf-8", "replace").strip()
    else:
        named = _read(body)
        if named is None:
            return ""
        if named.transfer and not trust:
            request.body = without_transfer(body)
        model = words(named.model)
    check_model(model)
    return model


def _read(body: bytes) -> _Named | None:
    """The fields of a JSON body, of what only Python takes for JSON as well; None without any."""
    try:
        return _decode(body)
    except _NOT_JSON:
        pass
    try:
        return _decode(readable(utf8(body)))
    except _NOT_JSON:
        return None


def _form_without_transfer(body: bytes, boundary: bytes) -> bytes:
    """A form has its extra arguments in one field, as JSON."""
    field = find_field(body, boundary, b"vllm_xargs")
    if field is None:
        return body
    arguments = body[field.start : field.end]
    kept = without_transfer(arguments)
    return body if kept is arguments else body[: field.start] + kept + body[field.end :]
