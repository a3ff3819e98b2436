"""The model a balanced request asks for, from its body: JSON or a multipart form."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from router.http.request import Request

# A form's fields usually come before its file; a model name further in than this is not looked for.
_FORM_REACH = 64 * 1024
_FORM_FIELD = re.compile(
    rb'content-disposition:\s*form-data;[^\r\n]*\bname="?model"?\s*(?:;[^\r\n]*)?\r\n'
    rb"(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,512})\r\n",
    re.IGNORECASE,
)


class _Named(msgspec.Struct, gc=False):
    model: str = ""


_decode = msgspec.json.Decoder(_Named).decode


def model_of(request: Request) -> str:
    """The model's name; empty where the body names none that can be read: any may take it."""
    body = request.body
    if body[:1] in b"{ \t\r\n":
        try:
            return _decode(body).model
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ""
    if body[:2] == b"--":
        reach = body[:_FORM_REACH]
        found = _FORM_FIELD.search(reach) or _FORM_FIELD.search(body[-_FORM_REACH:])
        if found:
            return found[1].decode("utf-8", "replace").strip()
    return ""
