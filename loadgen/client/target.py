"""One server: its address, and the connections that are kept to it."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from loadgen.client.connection import Call, Connection

EXPLAIN_HEADER = "x-warmroute-explain"
"""Asks a gateway to name the replica it chose; others ignore it."""
_UNFIT = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_UNFIT_HEADER = re.compile(r"[\r\n\0]")


class TargetError(ValueError):
    """A URL that cannot be a target."""


class Address(msgspec.Struct, frozen=True):
    """Where a server is."""

    host: str
    port: int
    tls: bool
    authority: str
    """As the host header has it."""
    prefix: str
    """Of the path, without a slash at its end."""


def address(url: str) -> Address:
    """Of http(s)://host[:port][/prefix]. Raises TargetError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetError(f"{url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or _UNFIT.search(url):
        raise TargetError(f"{url!r} is not a URL such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise TargetError(
            f"the URL of {parts.hostname} has a name or a password in it, which results would "
            "show and which is not sent: give it with --header authorization:... instead"
        )
    tls = parts.scheme == "https"
    return Address(
        parts.hostname, port or (443 if tls else 80), tls, parts.netloc, parts.path.rstrip("/")
    )


class Target:
    """One server: its address, and the connections to it. Mutable state: ``_idle`` and ``open``."""

    def __init__(self, url: str, path: str, headers: dict[str, str] | None = None) -> None:
        """url is http(s)://host[:port][/prefix], where a prefix ending in the API's path replaces
        it.

        Raises TargetError, also for a header that would end its line."""
        found = address(url)
        self.url = url
        self.host, self.port = found.host, found.port
        self.ssl = ssl.create_default_context() if found.tls else None
        self.path = path
        self._prefix = found.prefix.removesuffix(path)
        if self._prefix.endswith("/v1") and path.startswith("/v1/"):
            self._prefix = self._prefix[:-3]
        lines = [f"host: {found.authority}"]
        lines += ["content-type: application/json", "accept: text/event-stream, application/json"]
        lines += [f"{EXPLAIN_HEADER}: 1"]
        for name, value in (headers or {}).items():
            if _UNFIT_HEADER.search(name + value):
                raise TargetError(f"header {name!r} has a line break in it")
            lines.append(f"{name}: {value}")
        self._headers = "\r\n".join(lines).encode("latin-1")
        self._heads: dict[str, bytes] = {}
        """By path: a recorded workload may have several APIs in it."""
        self._idle: list[Connection] = []
        self.open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time
        self.complaints: dict[int, bytes] = {}
        """The first error body of each status."""

    def message(self, body: bytes, session: str, path: str = "") -> tuple[bytes, bytes]:
        """Head and body of a request; session names it to gateways that route by session. Another
        path than the target's own stands in its place."""
        path = path or self.path
        known = self._heads.get(path)
        if known is None:
            line = f"POST {self._prefix}{path} HTTP/1.1\r\n".encode("latin-1")
            known = self._heads[path] = line + self._headers
        head = b"%b\r\nx-session-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            known,
            session.encode(),
            len(body),
        )
        return head, body

    def send(self, call: Call) -> None:
        """Send on a kept connection, or on a new one."""
        if not call.sent:
            call.sent = self.clock()
        if self._idle and not call.fresh:
            self._idle.pop().start(call)
            return
        task = self._loop.create_task(self._connect(call))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self, call: Call) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self), self.host, self.port, ssl=self.ssl
            )
        except OSError as error:
            name = "refused" if isinstance(error, ConnectionRefusedError) else "failed"
            call.end(f"connection {name}")
            return
        if call.ended:
            self.keep(connection)
            return
        connection.start(call)

    def keep(self, connection: Connection) -> None:
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def complain(self, status: int, body: bytes) -> None:
        self.complaints.setdefault(status, body)

    async def close(self) -> None:
        """Close every connection; calls still on their way are the caller's to end first."""
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self.open):
            connection.abort()
        self._idle.clear()
