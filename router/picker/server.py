"""The picker's port: gRPC calls of data planes, from start to a clean stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from router.config.checks import server_context
from router.http.server import every_address
from router.http.timeouts import SWEEP_INTERVAL_S
from router.http.upstream import keep_alive
from router.picker.endpoints import Endpoints
from router.picker.grpc import Call, Services
from router.picker.health import Health
from router.picker.http2 import Connection, Headers
from router.picker.processing import Processing
from router.picker.unseen import Unseen

if TYPE_CHECKING:
    from router.http.gateway import Gateway

log = logging.getLogger(__name__)

PROCESSOR: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
PROCESS: Final = f"/{PROCESSOR}/Process".encode()

_BACKLOG = 4096
_LOOK_AGAIN = 0.02
# Calls that one connection may have open: Envoy opens another one beyond.
_STREAMS = 10_000
# What the protocol puts around a body.
_ENVELOPE = 64 * 1024


class PickerServer:
    """Listens for data planes on the gateway's behalf: `start`, `settle`, `stop`.

    Implements ``router.picker.http2.Owner``.
    """

    max_streams = _STREAMS

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None
        self._connections: set[Connection] = set()
        self._open: set[Processing] = set()
        self.port = 0
        """Listened on, once started."""
        self.hurry = asyncio.Event()
        """Set: what is in progress is not waited for any longer."""
        self._endpoints = Endpoints()
        gateway.fleet.listen(self._endpoints)
        self._unseen = Unseen(gateway)
        self._health = Health(
            {
                "": self._ready,
                "liveness": lambda: True,
                "readiness": self._ready,
                PROCESSOR: self._ready,
            }
        )
        self._services = Services(
            {PROCESS: self._process, **self._health.methods},
            gateway.settings.max_body + _ENVELOPE,
        )

    def _ready(self) -> bool:
        gateway = self._gateway
        return not gateway.closing and bool(gateway.fleet.usable or gateway.settings.hold_timeout)

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return bool(self._open)

    async def start(self) -> None:
        """Listen. Raises OSError when the port cannot be had."""
        settings = self._gateway.settings
        options: dict[str, Any] = {"host": settings.host, "port": settings.port}
        if settings.host == "::":
            # By host, the event loop would leave IPv4 out.
            options = {"sock": every_address(settings.port, settings.workers > 1)}
        elif settings.workers > 1:
            options["reuse_port"] = True
        if settings.tls_cert:
            self._tls = server_context(settings.tls_cert, settings.tls_key)
            self._tls.set_alpn_protocols(["h2"])
            options["ssl"] = self._tls
            options["ssl_handshake_timeout"] = settings.head_timeout
        loop = self._gateway.loop
        self._server = await loop.create_server(
            lambda: Connection(self), backlog=_BACKLOG, **options
        )
        for listening in self._server.sockets:
            keep_alive(listening)
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweep = loop.create_task(self._sweeps(), name="sweep")

    def reload_certificate(self) -> None:
        """Serve new connections with the certificate and key that the files hold now.

        Raises OSError, ssl.SSLError where they do not load.
        """
        if self._tls is not None:
            settings = self._gateway.settings
            # Tried first: a pair that does not belong together must not be loaded half.
            server_context(settings.tls_cert, settings.tls_key)
            self._tls.load_cert_chain(settings.tls_cert, settings.tls_key)

    def settle(self) -> None:
        """Go on serving, but not ready any more, so that data planes go elsewhere."""
        self._gateway.closing = True
        self._health.changed()

    async def stop(self) -> None:
        """Take no more, let what is in progress finish within drain_timeout, close everything."""
        gateway = self._gateway
        self.settle()
        gateway.queue.drain()
        gateway.holding.release()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(gateway.settings.drain_timeout):
                while self._open and not self.hurry.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN)
        if self._open:
            log.warning("%d requests were cut off from the picker", len(self._open))
        for connection in list(self._connections):
            connection.transport.abort()
        self._unseen.close(monotonic())
        for task in list(gateway.tasks):
            task.cancel()
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)

    async def _sweeps(self) -> None:
        """Let the queue's own time pass, and tell how things are."""
        gateway = self._gateway
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            now = monotonic()
            self._unseen.tick(now)
            gateway.queue.tick(now)
            gateway.live.streams = sum(call.is_stream for call in self._open)
            self._health.changed()

    def _process(self, call: Call, headers: Headers) -> Processing:  # noqa: ARG002
        return Processing(self._gateway, self._endpoints, self._unseen, call, self._open)

    # -- router.picker.http2.Owner

    def opened(self, connection: Connection) -> None:
        """A data plane has connected."""
        self._connections.add(connection)
        self._gateway.live.connections += 1

    def call(self, connection: Connection, number: int, headers: Headers) -> Call:
        """A call begins."""
        return self._services.call(connection, number, headers)

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)
        self._gateway.live.connections -= 1
