"""The admin port's routes. docs/reference/admin.md describes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from router.admin.console_data import Console
from router.admin.engines import OPERATIONS, CallResult
from router.admin.guard import FILES, Guard
from router.admin.messages import HEADERS, as_json, error, limit, parameters, read_body
from router.admin.page import file, page
from router.admin.parts import AdminParts, Phase
from router.admin.replicas import report, reports
from router.audit import Auditor
from router.audit.report import audit as report_audit
from router.audit.report import session as report_session
from router.audit.report import sessions as report_sessions
from router.config.units import parse_duration
from router.fleet.replica import Replica
from router.telemetry.exposition import CONTENT_TYPE
from router.types import Role


class Registration(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /replicas and DELETE /replicas."""

    url: str
    models: tuple[str, ...] = ()
    """What it serves; empty leaves it to /v1/models."""
    role: Role | None = None
    """None leaves it as it is: for a new one decode, or as the settings list it."""


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
    limits: str
    """Tenants' keys and limits: off, ok, or what does not work just now. No reason either."""


def create_app(
    parts: AdminParts, *, bound: str, key: str = "", hosts: Sequence[str] = ()
) -> Starlette:
    """The ASGI app. bound, key and hosts: see `router.admin.guard.Guard`."""
    admin = _Admin(parts)
    console = Console(parts)
    return Starlette(
        routes=[
            Route("/", page),
            Route(f"{FILES}{{name:path}}", file),
            Route("/requests", console.requests),
            Route("/queue", console.queue),
            Route("/prefixes", console.prefixes),
            Route("/policies", console.policies),
            Route("/settings", console.settings),
            Route("/playground", console.play, methods=["POST"]),
            Route("/healthz", admin.healthz),
            Route("/readyz", admin.readyz),
            Route("/metrics", admin.metrics),
            Route("/replicas", admin.replicas),
            Route("/replicas", admin.register, methods=["POST"]),
            Route("/replicas", admin.deregister, methods=["DELETE"]),
            # Greedy: a replica's name may hold slashes, an operation's path too.
            Route("/replicas/{rest:path}", admin.change, methods=["POST"]),
            Route("/replicas/{name:path}", admin.deregister, methods=["DELETE"]),
            Route("/sessions", admin.sessions),
            Route("/sessions/{name}", admin.session),
            Route("/audit", admin.audit),
            Route("/explain", admin.latest),
            Route("/shadows", admin.shadows),
            Route("/explain/{request_id:path}", admin.explain),
        ],
        middleware=[Middleware(Guard, bound=bound, key=key, hosts=hosts)],
        exception_handlers={HTTPException: error},
    )


class _Admin:
    """The handlers of the admin port's paths."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def healthz(self, _request: Request) -> Response:
        """The process runs and its event loop turns."""
        return as_json({"status": "ok"})

    async def readyz(self, _request: Request) -> Response:
        """Whether to send clients here."""
        fleet = self._parts.fleet
        count = sum(replica is not None for replica in fleet.replicas)
        usable = fleet.usable.bit_count()
        phase = self._parts.phase()
        reasons = []
        if phase is not Phase.SERVING:
            reasons.append(f"the router is {phase}")
        # With hold_timeout, requests wait here until there is a replica.
        if not usable and not self._parts.console.settings().hold_timeout:
            reasons.append(self._nobody(count))
        answer = Readiness(
            not reasons, reasons, count, usable, self._parts.state(), self._parts.limits()
        )
        return as_json(answer, 503 if reasons else 200)

    def _nobody(self, count: int) -> str:
        """Why none of so many replicas is usable."""
        if count:
            return f"none of {count} replicas is usable"
        problem = self._parts.problem()
        return "no replica in the fleet" + (f": {problem}" if problem else "")

    async def metrics(self, _request: Request) -> Response:
        """All metrics, in the Prometheus text format."""
        parts = await self._parts.exposition.render()
        size = {"content-length": str(sum(map(len, parts)))}
        return StreamingResponse(_taking_turns(parts), 200, {**HEADERS, **size}, CONTENT_TYPE)

    async def replicas(self, request: Request) -> Response:
        """All replicas, with state, load and hit rate."""
        parameters(request)
        return as_json(reports(self._parts))

    async def latest(self, request: Request) -> Response:
        """The explanations of the latest requests."""
        parameters(request)
        return as_json(self._parts.explain.latest())

    async def explain(self, request: Request) -> Response:
        """The explanation of one request."""
        parameters(request)
        request_id = request.path_params["request_id"]
        found = self._parts.explain.find(request_id)
        if found is None:
            raise HTTPException(
                404, f"request {request_id!r} is not among the latest that are kept"
            )
        return as_json(found)

    async def shadows(self, request: Request) -> Response:
        """What other policies would have got."""
        parameters(request)
        if self._parts.shadows is None:
            raise HTTPException(
                404, "no shadow policies run; set shadow_policies, such as round_robin"
            )
        return as_json(self._parts.shadows())

    async def sessions(self, request: Request) -> Response:
        """The latest sessions of agents."""
        asked = parameters(request, "limit", "model", "tenant")
        model, tenant = asked.get("model", ""), asked.get("tenant", "")
        most = limit(asked, 100)
        return as_json(report_sessions(self._auditor(), most, model, tenant))

    async def session(self, request: Request) -> Response:
        """One session, step by step."""
        parameters(request)
        name = request.path_params["name"]
        found = report_session(self._auditor(), name)
        if found is None:
            raise HTTPException(404, f"session {name!r} is not among the latest that are kept")
        return as_json(found)

    async def audit(self, request: Request) -> Response:
        """What in the traffic costs cached tokens, and what mends it."""
        text = parameters(request, "since").get("since", "1h")
        try:
            since = parse_duration(text)
        except ValueError as why:
            raise HTTPException(400, f"since {text!r}: {why}; write it like 15m or 1h") from None
        return as_json(report_audit(self._auditor(), since, time.time()))

    def _auditor(self) -> Auditor:
        auditor = self._parts.auditor
        if auditor is None:
            raise HTTPException(404, "nothing is audited: `diagnosis` is off")
        return auditor

    async def register(self, request: Request) -> Response:
        """Let a replica in. One that is there stays, with the models and role that are given."""
        parameters(request)
        fleet, given = self._parts.fleet, await _registration(request)
        try:
            known = fleet.find(given.url)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        except KeyError:
            known = fleet.add(given.url, given.models, given.role)
            return as_json(report(self._parts, known), 201)
        if given.models:
            fleet.set_models(known, given.models)
        if given.role:
            fleet.set_role(known, given.role)
        return as_json(report(self._parts, known))

    async def deregister(self, request: Request) -> Response:
        """Let a replica go: nothing more is sent there, and what is in flight ends as it will."""
        parameters(request)
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
        return as_json(CallResult(replica.name, ok=True))

    async def change(self, request: Request) -> Response:
        """Change a replica, or all of them."""
        rest = request.path_params["rest"]
        replicas, what = self._split(rest)
        if what in ("drain", "undrain"):
            parameters(request)
            act = self._parts.fleet.drain if what == "drain" else self._parts.fleet.undrain
            for replica in replicas:
                act(replica.url)
            return as_json([CallResult(replica.name, ok=True) for replica in replicas])
        operation = OPERATIONS.get(what)
        if operation is None:
            known = ", ".join(("drain", "undrain", *sorted(OPERATIONS)))
            raise HTTPException(404, f"nothing known by {what!r}; there are: {known}")
        results = await self._parts.engines.call(
            replicas, operation, request.url.query, await read_body(request)
        )
        for replica, result in zip(replicas, results, strict=True):
            if result.ok:
                self._parts.engine_changed(replica, operation, result.emptied)
        if all(result.ok for result in results):
            return as_json(results)
        # The engines' own error when all agree on it; else something failed somewhere.
        errors = {result.status for result in results}
        alone = errors.pop() if len(errors) == 1 else 502
        return as_json(results, alone if alone >= 400 else 502)

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
    """Read the body of a registration. Raises HTTPException when it is wrong."""
    try:
        return msgspec.json.decode(await read_body(request), type=Registration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(
            400, f'give {{"url": "http://10.0.0.1:8000"}}, with "models" or without: {error}'
        ) from None


async def _taking_turns(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Parts of an answer, so that writing a large one does not hold up the event loop."""
    for part in parts:
        yield part
        await asyncio.sleep(0)
