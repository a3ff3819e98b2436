"""One admin port for several workers: it asks them, and puts their answers together.

/metrics has every worker's samples with a `worker` label. /readyz is ready when all workers are.
/explain looks through all. What each worker counts is put together (`router/admin/joined.py`,
`router/audit/joined.py`), but for /shadows. Draining, registering replicas and letting them go are
told to all, the latter two also to workers that start later. Everything else, which the workers
share or answer alike, is asked of the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.admin.console_data import Policies, QueueReport, Requests
from router.admin.guard import HEADER, Guard
from router.admin.joined import joined_policies, joined_queue, joined_replicas
from router.admin.messages import as_json, error, limit, read_body
from router.admin.replicas import ReplicaReport
from router.admin.server import EmbeddedServer, bind
from router.audit.joined import joined, joined_session, joined_sessions
from router.audit.report import Audit, SessionList, SessionStory
from router.config import Settings
from router.config.address import parse_address
from router.telemetry.exposition import CONTENT_TYPE

log = logging.getLogger(__name__)

WORKER_TIMEOUT_S: Final = 10.0
"""Seconds for a worker's answer; engines may take long for what is asked of them."""
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)")
_HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_NOBODY: Final = b'{"error":"no worker is ready"}'

_Told = TypeVar("_Told")
Workers = Callable[[], list[tuple[int, int]]]
"""(worker, its admin port) of those that can be asked."""


class GatheredServer:
    """Serves the admin port of the supervisor."""

    def __init__(self, settings: Settings, workers: Workers) -> None:
        self._settings = settings
        self._workers = workers
        self._client = httpx.AsyncClient(timeout=WORKER_TIMEOUT_S, trust_env=False)
        self._changes: dict[str, tuple[str, bytes]] = {}
        """Replica's name -> method and body of the last change of /replicas that workers to come
        must make too."""
        self.port = settings.admin_port
        """Listened on, once started."""
        app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/metrics", self._metrics),
                Route("/readyz", self._readyz),
                Route("/explain", self._latest),
                Route("/requests", self._requests),
                Route("/explain/{request_id:path}", self._explain),
                Route("/sessions", self._joined(SessionList, joined_sessions)),
                Route("/sessions/{name}", self._joined(SessionStory, joined_session)),
                Route("/audit", self._joined(Audit, joined)),
                Route("/replicas", self._joined(list[ReplicaReport], joined_replicas)),
                Route("/queue", self._joined(QueueReport, joined_queue)),
                Route("/policies", self._joined(Policies, joined_policies)),
                Route("/replicas", self._change, methods=["POST", "DELETE"]),
                Route("/replicas/{name:path}", self._change, methods=["DELETE"]),
                Route("/{rest:path}", self._first, methods=["GET", "POST"]),
            ],
            middleware=[
                Middleware(
                    Guard,
                    bound=settings.admin_host,
                    key=settings.admin_key,
                    hosts=settings.admin_names,
                )
            ],
            exception_handlers={HTTPException: error},
        )
        self._server = EmbeddedServer(app)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the address is not free."""
        listening = bind(self._settings.admin_host, self.port)
        self.port = listening.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([listening]), name="admin server")

    async def stop(self) -> None:
        """Finish answers under way, close."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
        await self._client.aclose()

    async def _ask(self, request: Request, port: int, body: bytes = b"") -> httpx.Response | None:
        # As it was sent: an id in the path may have escaped slashes and question marks.
        target = request.scope["raw_path"]
        if request.scope["query_string"]:
            target += b"?" + request.scope["query_string"]
        headers = [(HEADER.encode(), b"1")]
        headers += [
            (name, value)
            for name, value in request.headers.raw
            if name in (b"authorization", b"content-type")
        ]
        return await self._call(port, request.method, target, body, headers)

    async def _call(
        self, port: int, method: str, target: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> httpx.Response | None:
        url = httpx.URL(f"http://127.0.0.1:{port}").copy_with(raw_path=target)
        with contextlib.suppress(httpx.HTTPError):
            return await self._client.request(method, url, content=body, headers=headers)
        return None

    async def catch_up(self, port: int) -> None:
        """A worker has started: make the changes of /replicas there that the others have made."""
        headers = [(HEADER.encode(), b"1")]
        if self._settings.admin_key:
            headers.append((b"authorization", b"Bearer %b" % self._settings.admin_key.encode()))
        for method, body in list(self._changes.values()):
            if await self._call(port, method, b"/replicas", body, headers) is None:
                log.warning("a worker that has just started did not get all registered replicas")
                return

    async def _all(
        self, request: Request, body: bytes = b""
    ) -> list[tuple[int, httpx.Response | None]]:
        workers = self._workers()
        answers = await asyncio.gather(*(self._ask(request, port, body) for _, port in workers))
        return [(worker, answer) for (worker, _), answer in zip(workers, answers, strict=True)]

    async def _healthz(self, _request: Request) -> Response:
        return Response(b'{"status":"ok"}', 200, _HEADERS, "application/json")

    async def _metrics(self, request: Request) -> Response:
        texts = [
            (worker, answer.text)
            for worker, answer in await self._all(request)
            if answer is not None and answer.status_code == 200
        ]
        return Response(merged(texts), 200, _HEADERS, CONTENT_TYPE)

    async def _readyz(self, request: Request) -> Response:
        """The first answer that is not 200, or else the first."""
        answers = [answer for _, answer in await self._all(request)]
        for answer in answers:
            if answer is not None and answer.status_code != 200:
                return _same(answer)
        if len(answers) < self._settings.workers or None in answers:
            body = {"ready": False, "reasons": ["not all workers are ready"]}
            return Response(msgspec.json.encode(body), 503, _HEADERS, "application/json")
        return _same(answers[0])

    async def _latest(self, request: Request) -> Response:
        good, answer = await self._good(request)
        if answer is not None:
            return answer
        found = [line for each in good for line in msgspec.json.decode(each)]
        return Response(msgspec.json.encode(found), 200, _HEADERS, "application/json")

    def _joined(
        self, kind: type[_Told], join: Callable[[Sequence[_Told]], object]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler for what each worker tells of itself. kind: of an answer. join: makes one of
        the good answers, at least one."""

        async def handler(request: Request) -> Response:
            good, answer = await self._good(request)
            if answer is not None:
                return answer
            return as_json(join([msgspec.json.decode(each, type=kind) for each in good]))

        return handler

    async def _requests(self, request: Request) -> Response:
        """Those of all workers, newest first."""
        good, answer = await self._good(request)
        if answer is not None:
            return answer
        found = [msgspec.json.decode(each, type=Requests) for each in good]
        lines = [line for each in found for line in each.requests]
        lines.sort(key=lambda line: line.started, reverse=True)
        del lines[limit(dict(request.query_params), 100) :]
        return as_json(Requests(sum(each.kept for each in found), lines))

    async def _good(self, request: Request) -> tuple[list[bytes], Response | None]:
        """(the bodies of the workers' good answers, what to answer where there is none)."""
        answers = [answer for _, answer in await self._all(request)]
        good = [a.content for a in answers if a is not None and a.status_code == 200]
        if good:
            return good, None
        return [], _same(next((a for a in answers if a is not None), None))

    async def _explain(self, request: Request) -> Response:
        answers = [answer for _, answer in await self._all(request)]
        return _same(
            next((a for a in answers if a is not None and a.status_code == 200), None)
            or next((a for a in answers if a is not None), None)
        )

    async def _change(self, request: Request) -> Response:
        """Registers a replica with all workers, or lets one go from all."""
        body = await read_body(request)
        answers = [answer for _, answer in await self._all(request, body)]
        bad = next((a for a in answers if a is not None and a.status_code >= 400), None)
        answer = bad or next((a for a in answers if a is not None), None)
        if answer is not None and bad is None:
            self._remember(request.method, answer, body)
        return _same(answer)

    def _remember(self, method: str, answer: httpx.Response, body: bytes) -> None:
        told = msgspec.json.decode(answer.content)
        if method == "POST":
            self._changes[told["name"]] = method, body
            return
        name = told["replica"]
        self._changes.pop(name, None)
        for url in self._settings.engines:
            if parse_address(url).name == name:
                self._changes[name] = method, msgspec.json.encode({"url": url})

    async def _first(self, request: Request) -> Response:
        body = await read_body(request)
        if request.method == "POST" and request.url.path.endswith(("/drain", "/undrain")):
            answers = [answer for _, answer in await self._all(request, body)]
            bad = next((a for a in answers if a is not None and a.status_code != 200), None)
            return _same(bad or next((a for a in answers if a is not None), None))
        for _, port in self._workers():
            answer = await self._ask(request, port, body)
            if answer is not None or request.method == "POST":
                return _same(answer)
        return _same(None)


def _same(answer: httpx.Response | None) -> Response:
    """A worker's answer as our own."""
    if answer is None:
        return Response(_NOBODY, 503, _HEADERS, "application/json")
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name in ("content-security-policy", "content-type", *_HEADERS, "x-frame-options")
    }
    return Response(answer.content, answer.status_code, headers)


def merged(texts: list[tuple[int, str]]) -> str:
    """The workers' metrics as one text: each family once, each sample with a `worker` label."""
    families: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for worker, text in texts:
        family = ""
        # Not splitlines(): a label may hold other characters that end lines.
        for line in text.split("\n"):
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = heads.setdefault(family, [])
                if line not in known and len(known) < 2:
                    known.append(line)
                families.setdefault(family, [])
                continue
            found = _SAMPLE.fullmatch(line)
            if found is None:
                continue
            name, labels, value = found.groups()
            inside = f'worker="{worker}",{labels}' if labels else f'worker="{worker}"'
            families.setdefault(family or name, []).append(f"{name}{{{inside}}} {value}")
    lines: list[str] = []
    for family, samples in families.items():
        lines += heads.get(family, [])
        lines += samples
    return "\n".join(lines) + "\n"
