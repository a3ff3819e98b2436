"""The usual way to write such a proxy in Python, as a reference: Starlette and httpx, round robin."""

from __future__ import annotations

import itertools
import os

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_replicas = itertools.cycle(
    f"http://127.0.0.1:{port}" for port in os.environ["BENCH_REPLICAS"].split(",")
)
_client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=256))
_HOP = {"host", "content-length", "connection", "transfer-encoding"}


async def _forward(request: Request) -> StreamingResponse:
    headers = [(k, v) for k, v in request.headers.items() if k not in _HOP]
    sent = _client.build_request(
        request.method,
        next(_replicas) + request.url.path,
        headers=headers,
        content=await request.body(),
    )
    answer = await _client.send(sent, stream=True)
    kept = {k: v for k, v in answer.headers.items() if k not in ("connection", "transfer-encoding")}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept)


app = Starlette(routes=[Route("/{path:path}", _forward, methods=["GET", "POST"])])
