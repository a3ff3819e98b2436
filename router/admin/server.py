"""The admin port's server: uvicorn in the router's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette

from router.admin.app import create_app
from router.admin.connection import AdminConnection
from router.admin.parts import AdminParts
from router.telemetry.recent import SAMPLE_INTERVAL_S, answers

log = logging.getLogger(__name__)

BACKLOG = 128
STOP_TIMEOUT_S = 2
"""How long answers under way may take when it stops."""


class EmbeddedServer(uvicorn.Server):
    """uvicorn without its signal handlers: the router has its own."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=AdminConnection,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                # The peer's address decides who may change things: it is not taken from headers.
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """Serves the admin port and takes the samples its recent hit rates come from."""

    def __init__(
        self,
        parts: AdminParts,
        host: str,
        port: int,
        *,
        key: str = "",
        hosts: Sequence[str] = (),
    ) -> None:
        """port 0 takes a free one. key and hosts: see `router.admin.guard.Guard`."""
        self.port = port
        """The port listened on, once started."""
        self._parts = parts
        self._host = host
        self._server = EmbeddedServer(create_app(parts, bound=host, key=key, hosts=hosts))
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Listen. Returns when clients can connect. Raises OSError when the address is not free."""
        # Bound here rather than by uvicorn, which would end the process on failure.
        self._socket = bind(self._host, self.port)
        self.port = self._socket.getsockname()[1]
        self._tasks = [
            asyncio.create_task(self._server.serve([self._socket]), name="admin server"),
            asyncio.create_task(self._sample(), name="admin samples"),
        ]
        for task in self._tasks:
            task.add_done_callback(_log_failure)

    async def stop(self) -> None:
        """Stop listening, finish answers under way, close."""
        if not self._tasks:
            return
        serving, sampling = self._tasks
        self._tasks = []
        self._server.should_exit = True
        sampling.cancel()
        await asyncio.gather(serving, sampling, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _sample(self) -> None:
        parts = self._parts
        while True:
            parts.recent.sample(parts.telemetry.ledgers())
            parts.answers.sample(time.monotonic(), answers(parts.telemetry))
            await asyncio.sleep(SAMPLE_INTERVAL_S)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", task.get_name(), exc_info=error)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError that names the address."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise OSError(error.errno, f"admin address {host}:{port}: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"admin address {host}:{port}: {error}") from error
    bound.setblocking(False)
    return bound
