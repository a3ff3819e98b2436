"""Bodies of the admin port's requests and answers."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from router.admin.engines import MAX_BODY_BYTES

MOST: Final = 500
"""Entries of one answer."""
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


async def read_body(request: Request) -> bytes:
    """The body, at most `MAX_BODY_BYTES` bytes. Raises HTTPException."""
    found = bytearray()
    try:
        async for chunk in request.stream():
            found += chunk
            if len(found) > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the body's end") from None
    return bytes(found)


def as_json(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(content), status, HEADERS, "application/json")


async def error(_request: Request, why: Exception) -> Response:
    """The answer for an HTTPException."""
    assert isinstance(why, HTTPException)
    headers = {**HEADERS, **(why.headers or {})}
    return Response(
        msgspec.json.encode({"error": why.detail}), why.status_code, headers, "application/json"
    )


def parameters(request: Request, *known: str) -> dict[str, str]:
    """The query's parameters, each given once. Raises HTTPException for others: one that is
    misspelt would be left out without a word."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "there are none"
            raise HTTPException(400, f"no parameter {name!r} at {request.url.path}; {there}")
        if name in found:
            raise HTTPException(400, f"{name} is given more than once")
        found[name] = value
    return found


def limit(asked: dict[str, str], default: int) -> int:
    """How many entries are asked for by `limit`, at most `MOST`. Raises HTTPException."""
    text = asked.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise HTTPException(400, f"limit must be a number from 1 to {MOST}, not {text!r}")
    return min(int(text), MOST)
