"""What supervisor and workers say to each other: frames on a socket pair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Final, cast

import msgspec

_HEAD: Final = Struct("<IBI")
"""Bytes that follow, kind, a worker's number."""
MAX_WAITING_BYTES: Final = 16 << 20
"""Bytes for a worker that does not read, after which it is told nothing more until it does."""

HEARTBEAT_INTERVAL_S: Final = 1.0
"""Seconds between two signs of life of a worker."""

READY, BATCH, LOAD, MAP, LOADED, ALIVE, LIMITS = range(1, 8)
"""READY: a worker says who it is (Ready). BATCH: facts for all others. LOAD: a worker asks for
maps, and the supervisor another one for them. MAP: a replica's, for the worker numbered. LOADED:
that was all. ALIVE: a worker's event loop turns. LIMITS: a worker's call to the
supervisor's counter, and its answer; numbered is not the worker but the call."""


class Ready(msgspec.Struct):
    """What a worker sends when it listens."""

    router: int
    """Its router number; 0 where it shares through something else."""
    admin_port: int


class Frames(asyncio.Protocol):
    """One end of a socket pair."""

    def __init__(
        self,
        heard: Callable[[int, int, bytes], None],
        lost: Callable[[], None],
    ) -> None:
        """heard(kind, worker, data); lost(): the other end is gone."""
        self._heard = heard
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self.dropped = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        self.bytes_received += len(data)
        at = 0
        while len(buffer) - at >= _HEAD.size:
            size, kind, worker = _HEAD.unpack_from(buffer, at)
            end = at + _HEAD.size + size
            if len(buffer) < end:
                break
            self._heard(kind, worker, bytes(buffer[at + _HEAD.size : end]))
            at = end
        if at:
            del buffer[:at]

    def tell(self, kind: int, data: bytes = b"", worker: int = 0) -> bool:
        """Send a frame; False when the other end is gone or does not read."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            self.dropped += 1
            return False
        transport.write(_HEAD.pack(len(data), kind, worker) + data)
        self.bytes_sent += _HEAD.size + len(data)
        return True

    def close(self) -> None:
        """Close the socket without sending what waits."""
        if self._transport is not None:
            self._transport.abort()
