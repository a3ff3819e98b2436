"""Who may use the admin port.

Without a key anybody who reaches the port may read it, and only this machine may change anything. A
web page in somebody's browser must not be able to do either, though the browser reaches the port:

- *DNS rebinding*: the page's own host name is made to resolve to this machine, and the browser
  takes the two for one origin. So the Host header must be an address, localhost, this machine's
  name or one of the names allowed. Probes may use any name, and so may scrapes of a port that is
  open to others.
- *Cross-site requests*: a page of another origin may send simple requests. So requests that change
  something must carry a header that a browser sends across origins only after asking, which this
  port never answers: a JSON content type or ``X-Warmroute-Admin``. And Origin, if any, must be this
  host.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER: Final = "x-warmroute-admin"
PROBES: Final = frozenset({"/healthz", "/readyz"})
OPEN: Final = PROBES | {"/metrics", "/"}
"""No key needed: nothing of requests is told there."""
FILES: Final = "/console/"
"""The page's own files, which are the same everywhere."""
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class RefusedError(Exception):
    """A request that is not let through: status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Guard:
    """ASGI middleware that refuses what the rules above refuse, with a JSON error."""

    def __init__(
        self, app: ASGIApp, *, bound: str, key: str = "", hosts: Sequence[str] = ()
    ) -> None:
        """bound: the address listened on. key: asked for as a bearer token. hosts: further names
        that Host may have; "*" allows every name."""
        self._app = app
        self._key = key.encode()
        self._any = "*" in hosts
        self._names = {"localhost", socket.gethostname().lower(), *(h.lower() for h in hosts)}
        # On loopback no scraper comes by another name, so the metrics are guarded as the rest is.
        self._any_name = PROBES if _is_loopback(bound) else PROBES | {"/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except RefusedError as refusal:
                body = msgspec.json.encode({"error": refusal.why})
                headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else None
                response = Response(body, refusal.status, headers, "application/json")
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Check the host, origin and key of a request. Raises RefusedError."""
        path = scope["path"]
        host = headers.get("host", "")
        if path not in self._any_name and not self._allowed(host):
            raise RefusedError(
                421,
                f"host {host!r} is not one of this port's names: use an address or localhost, "
                "or allow the name",
            )
        reads = scope["method"] in READS
        if self._key:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
            open_to_all = reads and (path in OPEN or path.startswith(FILES))
            if not open_to_all and not hmac.compare_digest(given, self._key):
                raise RefusedError(401, "the admin key is needed: Authorization: Bearer KEY")
        if reads:
            return
        if not self._key and not _is_loopback(scope["client"][0] if scope.get("client") else ""):
            raise RefusedError(
                403, "without an admin key, changes are taken from the router's own machine only"
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and HEADER not in headers:
            raise RefusedError(
                403, "send Content-Type: application/json or X-Warmroute-Admin: 1 with changes"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RefusedError(403, f"changes are not taken from pages of {origin!r}")

    def _allowed(self, host: str) -> bool:
        name = _name(host)
        return self._any or name in self._names or name.endswith(".localhost") or _is_address(name)


def _name(host: str) -> str:
    """The Host header without its port, lower case, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
