"""A worker's end of the line to its supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping

import msgspec

from router.config import Settings
from router.workers.frames import ALIVE, HEARTBEAT_INTERVAL_S, LIMITS, READY, Frames, Ready
from router.workers.limits import SupervisorCounter
from router.workers.transport import WorkerTransport

log = logging.getLogger(__name__)

WORKER_ENV = "SUPERVISED_WARMROUTE"
"""Set by the supervisor for its workers: file descriptor, port."""


class Worker:
    """What a process is told that is a worker."""

    def __init__(self, place: str, settings: Settings) -> None:
        descriptor, port = map(int, place.split(","))
        self._socket = socket.socket(fileno=descriptor)
        self.settings = msgspec.structs.replace(
            settings, port=port, admin_host="127.0.0.1", admin_port=0
        )
        """The settings, with the port all workers serve, and an admin port for the supervisor."""
        self.transport = None if settings.state else WorkerTransport()
        """What it shares through, unless that is Redis."""
        self._frames = Frames(self._heard, self._orphaned)
        self.counter = None if settings.state else SupervisorCounter(self._frames)
        """Where it counts limits, unless that is Redis."""

    async def attach(self) -> None:
        """Take up the line. Before the app starts."""
        self._socket.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(
            lambda: self._frames, sock=self._socket
        )
        if self.transport is not None:
            self.transport.attach(self._frames)
        self._beat()

    def _beat(self) -> None:
        self._frames.tell(ALIVE)
        asyncio.get_running_loop().call_later(HEARTBEAT_INTERVAL_S, self._beat)

    def ready(self, router: int, admin_port: int) -> None:
        """Tell that this worker serves."""
        self._frames.tell(READY, msgspec.json.encode(Ready(router, admin_port)))

    def _heard(self, kind: int, worker: int, data: bytes) -> None:
        if kind == LIMITS:
            if self.counter is not None:
                self.counter.heard(worker, data)
        elif self.transport is not None:
            self.transport.heard(kind, worker, data)

    def _orphaned(self) -> None:
        log.error("the supervisor has ended; this worker stops")
        os.kill(os.getpid(), signal.SIGTERM)


def from_environment(environment: Mapping[str, str], settings: Settings) -> Worker | None:
    """The worker this process is; None when nobody supervises it."""
    place = environment.get(WORKER_ENV)
    return Worker(place, settings) if place else None
