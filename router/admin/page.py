"""The page for people: the fleet at a glance. It asks /replicas and /readyz for what it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response


@cache
def _document() -> tuple[bytes, str]:
    """The page, and a policy that lets a browser run its own script and style and nothing else."""
    text = files("router.admin").joinpath("page.html").read_text("utf-8")
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; "
        f"script-src {_digest(text, 'script')}; style-src {_digest(text, 'style')}"
    )
    return text.encode(), policy


def _digest(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    assert found is not None
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return f"'sha256-{digest}'"


async def page(_request: Request) -> Response:
    """The page."""
    body, policy = _document()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(body, headers=headers, media_type="text/html")
