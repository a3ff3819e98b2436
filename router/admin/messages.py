"""Bodies of the admin port's requests and answers."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from router.admin.engines import MAX_BODY_BYTES

HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


async def read_body(request: Request) -> bytes:
    """The body, at most `MAX_BODY_BYTES` bytes. Raises HTTPException."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return bytes(found)


def as_json(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(content), status, HEADERS, "application/json")
