"""Fields of a multipart form, found without parsing what is in its files: RFC 7578.

One pass of searches for the boundary, a bounded look at each part's head, and a bounded number of
parts: the time is a few times what searching the body takes, whatever it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from router.prompt import Transfer, check_model, decoded, without_transfer
from router.prompt.canonical import ABSENT, words

if TYPE_CHECKING:
    from router.http.request import Request

# What the engines' form parser takes: 1,000 fields and 1,000 files.
_MOST_PARTS = 2000
_LONGEST_HEAD = 4096
_MOST_LINES = 16
_MOST_PARAMETERS = 8


class Field(NamedTuple):
    """Where a field's content is in the body."""

    start: int
    end: int


def boundary_of(headers: list[bytes]) -> bytes:
    """The boundary that the content type of a form names; empty for another body.

    headers: name, value, name, value, ...
    """
    for name, value in zip(headers[::2], headers[1::2], strict=True):
        if name.lower() == b"content-type":
            kind, _, rest = value.partition(b";")
            if kind.strip().lower() == b"multipart/form-data":
                return _parameters(rest).get(b"boundary", b"")
            return b""
    return b""


def find_field(body: bytes, boundary: bytes, name: bytes) -> Field | None:
    """The last field of this name, as the engines take it, that is not a file."""
    delimiter = b"--" + boundary
    at = body.find(delimiter)
    between = b"\r\n" + delimiter
    found = None
    for _ in range(_MOST_PARTS):
        if at < 0:
            break
        head = at + len(delimiter)
        if body.startswith(b"--", head):
            break
        head_end = body.find(b"\r\n\r\n", head, head + _LONGEST_HEAD)
        if head_end < 0:
            break
        start = head_end + 4
        at = body.find(between, start)
        if at < 0:
            break
        given = _disposition(body[head:head_end])
        if given.get(b"name") == name and b"filename" not in given:
            found = Field(start, at)
        at += 2
    return found


def _disposition(head: bytes) -> dict[bytes, bytes]:
    """The parameters of a part's Content-Disposition."""
    for line in head.split(b"\r\n", _MOST_LINES):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameters(value.partition(b";")[2])
    return {}


def _parameters(text: bytes) -> dict[bytes, bytes]:
    """``name=value; name="value"`` -> the values by lower-case name."""
    found: dict[bytes, bytes] = {}
    for _ in range(_MOST_PARAMETERS):
        name, equals, text = text.partition(b"=")
        if not equals:
            break
        text = text.lstrip()
        if text[:1] == b'"':
            end = text.find(b'"', 1)
            while end > 0 and text[end - 1 : end] == b"\\":
                end = text.find(b'"', end + 1)
            if end < 0:
                break
            value, text = text[1:end], text[end + 1 :].partition(b";")[2]
        else:
            value, _, text = text.partition(b";")
        found[name.strip().lower()] = value.strip()
    return found


# A longer value of a form's field is no model's name, and too long to be one anyway.
_LONGEST_VALUE = 4096


class _Named(Transfer, gc=False):
    # Not str: of a name given twice the last one counts, whatever the first was.
    model: msgspec.Raw = ABSENT


_decode = msgspec.json.Decoder(_Named).decode


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
        named = decoded(_decode, body)
        if named is None:
            return ""
        if named.transfer and not trust:
            request.body = without_transfer(body)
        model = words(named.model)
    check_model(model)
    return model


def _form_without_transfer(body: bytes, boundary: bytes) -> bytes:
    """A form has its extra arguments in one field, as JSON."""
    field = find_field(body, boundary, b"vllm_xargs")
    if field is None:
        return body
    arguments = body[field.start : field.end]
    kept = without_transfer(arguments)
    return body if kept is arguments else body[: field.start] + kept + body[field.end :]
