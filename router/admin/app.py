"""The admin port's routes. docs/reference/admin.md describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from router.admin.engines import MAX_BODY_BYTES, OPERATIONS, CallResult
from router.admin.guard import Guard
from router.admin.page import page
from router.admin.parts import AdminParts, Phase
from router.admin.replicas import report, reports
from router.fleet.replica import Replica
from router.telemetry.exposition import CONTENT_TYPE

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class Registration(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /replicas and DELETE /replicas."""

    url: str
    models: tuple[str, ...] = ()
    """What it serves; empty leaves it to /v1/models."""


class Readiness(msgspec.Struct):
    """The answer of /readyz."""

    ready: bool
    reasons: list[str]
    """Why not; empty when ready."""
    replicas: int
    usable: int
    """Replicas that requests may be sent to."""
    state: str
    """Whether what other routers know is known here: shared, local only, or alone (there are
    none). No reason not to be ready."""


def create_app(
    parts: AdminParts, *, bound: str, key: str = "", hosts: Sequence[str] = ()
) -> Starlette:
    """The ASGI app. bound, key and hosts: see `router.admin.guard.Guard`."""
    admin = _Admin(parts)
    return Starlette(
        routes=[
            Route("/", page),
            Route("/healthz", admin.healthz),
            Route("/readyz", admin.readyz),
            Route("/metrics", admin.metrics),
            Route("/replicas", admin.replicas),
            Route("/replicas", admin.register, methods=["POST"]),
            Route("/replicas", admin.deregister, methods=["DELETE"]),
            # Greedy: a replica's name may hold slashes, an operation's path too.
            Route("/replicas/{rest:path}", admin.change, methods=["POST"]),
            Route("/replicas/{name:path}", admin.deregister, methods=["DELETE"]),
            Route("/explain", admin.latest),
            Route("/explain/{request_id:path}", admin.explain),
        ],
        middleware=[Middleware(Guard, bound=bound, key=key, hosts=hosts)],
        exception_handlers={HTTPException: _error},
    )


class _Admin:
    """The handlers."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def healthz(self, _request: Request) -> Response:
        """The process runs and its event loop turns."""
        return _json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Whether to send clients here."""
        fleet = self._parts.fleet
        count = sum(replica is not None for replica in fleet.replicas)
        usable = fleet.usable.bit_count()
        phase = self._parts.phase()
        reasons = []
        if phase is not Phase.SERVING:
            reasons.append(f"the router is {phase}")
        if not count:
            problem = self._parts.problem()
            reasons.append("no replica in the fleet" + (f": {problem}" if problem else ""))
        elif not usable:
            reasons.append(f"none of {count} replicas is usable")
        answer = Readiness(not reasons, reasons, count, usable, self._parts.state())
        return _json(answer, 503 if reasons else 200)

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        parts = await self._parts.exposition.render()
        size = {"content-length": str(sum(map(len, parts)))}
        return StreamingResponse(_taking_turns(parts), 200, {**_HEADERS, **size}, CONTENT_TYPE)

    async def replicas(self, _request: Request) -> Response:
        """The fleet."""
        return _json(reports(self._parts))

    async def latest(self, _request: Request) -> Response:
        """The latest requests."""
        return _json(self._parts.explain.latest())

    async def explain(self, request: Request) -> Response:
        """One request."""
        request_id = request.path_params["request_id"]
        found = self._parts.explain.find(request_id)
        if found is None:
            raise HTTPException(
                404, f"request {request_id!r} is not among the latest that are kept"
            )
        return _json(found)

    async def register(self, request: Request) -> Response:
        """Let a replica in. One that is there stays, with other models where they are given."""
        fleet, given = self._parts.fleet, await _registration(request)
        try:
            known = fleet.find(given.url)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except KeyError:
            known = fleet.add(given.url, given.models)
            return _json(report(self._parts, known), 201)
        if given.models:
            fleet.set_models(known, given.models)
        return _json(report(self._parts, known))

    async def deregister(self, request: Request) -> Response:
        """Let a replica go: nothing more is sent there, and what is in flight ends as it will."""
        fleet, name = self._parts.fleet, request.path_params.get("name")
        try:
            if name is None:
                replica = fleet.find((await _registration(request)).url)
            else:
                replica = next(r for r in fleet.replicas if r is not None and r.name == name)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except (KeyError, StopIteration):
            raise HTTPException(404, "no such replica in the fleet") from None
        if replica.by_discovery:
            raise HTTPException(
                409,
                f"discovery found {replica.name} and would bring it back: take it out there, or "
                f"drain it: POST /replicas/{replica.name}/drain",
            )
        fleet.remove(replica.url)
        return _json(CallResult(replica.name, ok=True))

    async def change(self, request: Request) -> Response:
        """Change a replica, or all of them."""
        rest = request.path_params["rest"]
        replicas, what = self._split(rest)
        if what in ("drain", "undrain"):
            act = self._parts.fleet.drain if what == "drain" else self._parts.fleet.undrain
            for replica in replicas:
                act(replica.url)
            return _json([CallResult(replica.name, ok=True) for replica in replicas])
        operation = OPERATIONS.get(what)
        if operation is None:
            known = ", ".join(("drain", "undrain", *sorted(OPERATIONS)))
            raise HTTPException(404, f"nothing known by {what!r}; there are: {known}")
        results = await self._parts.engines.call(
            replicas, operation, request.url.query, await _body(request)
        )
        for replica, result in zip(replicas, results, strict=True):
            if result.ok:
                self._parts.engine_changed(replica, operation, result.emptied)
        if all(result.ok for result in results):
            return _json(results)
        # The engines' own error when all agree on it; else something failed somewhere.
        errors = {result.status for result in results}
        alone = errors.pop() if len(errors) == 1 else 502
        return _json(results, alone if alone >= 400 else 502)

    def _split(self, rest: str) -> tuple[list[Replica], str]:
        """(replicas, what to do) of a path after /replicas/. Raises HTTPException."""
        # An engine is one, however many ranks it has.
        members = [
            replica
            for replica in self._parts.fleet.replicas
            if replica is not None and not replica.rank
        ]
        if rest.startswith("all/"):
            if not members:
                raise HTTPException(404, "no replica in the fleet")
            return members, rest[len("all/") :]
        # The longest name first: one replica's name may be another's with a path prefix.
        for replica in sorted(members, key=lambda member: len(member.name), reverse=True):
            if rest.startswith(replica.name + "/"):
                return [replica], rest[len(replica.name) + 1 :]
        names = ", ".join(("all", *(replica.name for replica in members)))
        raise HTTPException(404, f"no replica named so in /replicas/{rest}; there are: {names}")


async def _registration(request: Request) -> Registration:
    """Raises HTTPException."""
    try:
        return msgspec.json.decode(await _body(request), type=Registration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(
            400, f'give {{"url": "http://10.0.0.1:8000"}}, with "models" or without: {error}'
        ) from None


async def _taking_turns(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Parts of an answer, so that writing a large one does not hold up the event loop."""
    for part in parts:
        yield part
        await asyncio.sleep(0)


async def _body(request: Request) -> bytes:
    """The body, at most `MOST_BODY` bytes. Raises HTTPException."""
    found = bytearray()
    async for chunk in request.stream():
        found += chunk
        if len(found) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return bytes(found)


def _json(content: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, _HEADERS, "application/json")


async def _error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Response(
        msgspec.json.encode({"error": error.detail}),
        error.status_code,
        {**_HEADERS, **(error.headers or {})},
        "application/json",
    )
