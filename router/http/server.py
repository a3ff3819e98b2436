"""The front port: listening, and coming to rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Any

from router.config import server_context
from router.http.client_connection import ClientConnection
from router.http.gateway import Gateway
from router.http.timeouts import TimeoutSweep
from router.http.upstream import keep_alive

log = logging.getLogger(__name__)

_BACKLOG = 4096
_LOOK_AGAIN = 0.02


class Server:
    """Listens for clients on the gateway's behalf: `start`, `settle`, `stop`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.clients: set[ClientConnection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.Task[None] | None = None
        self._tls: ssl.SSLContext | None = None
        self.port = 0
        """Listened on, once started."""
        self.hurry = asyncio.Event()
        """Set: what is in progress is not waited for any longer."""

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return any(client.exchange is not None for client in self.clients)

    async def start(self) -> None:
        """Listen. Raises OSError when the port cannot be had."""
        gateway = self._gateway
        settings = gateway.settings
        options: dict[str, Any] = {"host": settings.host, "port": settings.port}
        if settings.host == "::":
            # By host, the event loop would leave IPv4 out.
            options = {"sock": every_address(settings.port, settings.workers > 1)}
        elif settings.workers > 1:
            options["reuse_port"] = True
        if settings.tls_cert:
            self._tls = server_context(settings.tls_cert, settings.tls_key)
            options["ssl"] = self._tls
            options["ssl_handshake_timeout"] = settings.head_timeout
        self._server = await gateway.loop.create_server(
            lambda: ClientConnection(gateway, self.clients), backlog=_BACKLOG, **options
        )
        for listening in self._server.sockets:
            keep_alive(listening)
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweep = gateway.loop.create_task(
            TimeoutSweep(gateway, self.clients).run(), name="sweep"
        )

    def reload_certificate(self) -> None:
        """Serve new connections with the certificate and key that the files hold now.

        Raises OSError, ssl.SSLError where they do not load.
        """
        if self._tls is not None:
            settings = self._gateway.settings
            # Tried first: a pair that does not belong together must not be loaded half.
            server_context(settings.tls_cert, settings.tls_key)
            self._tls.load_cert_chain(settings.tls_cert, settings.tls_key)

    def settings_changed(self) -> None:
        """Have the next head on each connection read by the settings that hold now."""
        for client in self.clients:
            client.forget_head()

    def settle(self) -> None:
        """Go on serving, but let every answer from now on be its connection's last, so that
        clients go elsewhere."""
        self._gateway.closing = True

    async def stop(self) -> None:
        """Take no more, let what is in progress finish within drain_timeout, close everything."""
        gateway = self._gateway
        self.settle()
        gateway.queue.drain()
        gateway.holding.release()
        if self._server is not None:
            self._server.close()
        # An answer that is complete may still be on its way to a slow client: it is the connections
        # that are waited for, not the exchanges.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(gateway.settings.drain_timeout):
                while self._unfinished() and not self.hurry.is_set():  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_AGAIN)
        cut = self._unfinished()
        if cut:
            log.warning("%d client connections were cut off", cut)
        for client in list(self.clients):
            client.transport.abort()
        for task in list(gateway.tasks):
            task.cancel()
        for pool in (*gateway.pools, *gateway.overflow_pools.values()):
            pool.retire()
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)

    def _unfinished(self) -> int:
        """Close what is idle; how many connections are not."""
        clients = self.clients
        for client in clients:
            if client.idle:
                client.close()
        return sum(1 for client in clients if not client.finished)


def every_address(port: int, shared: bool) -> socket.socket:
    """A listening socket for IPv6 and IPv4; shared with other processes or not."""
    return socket.create_server(
        ("::", port),
        family=socket.AF_INET6,
        backlog=_BACKLOG,
        reuse_port=shared,
        dualstack_ipv6=True,
    )
