"""The gRPC health service: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

Its two messages hold one field each, with number 1: a string, and an enum. protobuf's wrappers of
these types have the same form on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from router.picker.grpc import INVALID_ARGUMENT, NOT_FOUND, Call, Method
from router.picker.http2 import Headers

SERVING: Final = 1
NOT_SERVING: Final = 2
_SERVICE_UNKNOWN: Final = 3

PATH: Final = b"/grpc.health.v1.Health/"


def _told(status: int) -> bytes:
    return bytes(Int32Value(value=status).SerializeToString())


class Health:
    """What is told of the picker's services; `changed` tells those that watch."""

    def __init__(self, services: Mapping[str, Callable[[], bool]]) -> None:
        """services: name -> whether it serves just now."""
        self._services = services
        self._watching: set[_Watch] = set()

    @property
    def methods(self) -> dict[bytes, Method]:
        """By path."""
        return {
            PATH + b"Check": lambda call, headers: _Check(self, call),  # noqa: ARG005
            PATH + b"Watch": self._watch,
        }

    def status(self, service: str) -> int:
        """The status of a service; 0 for one that nobody knows."""
        serves = self._services.get(service)
        if serves is None:
            return 0
        return SERVING if serves() else NOT_SERVING

    def changed(self) -> None:
        """Tell those that watch what has changed. Called regularly."""
        for watch in list(self._watching):
            watch.tell()

    def _watch(self, call: Call, headers: Headers) -> _Watch:  # noqa: ARG002
        watch = _Watch(self, call, self._watching)
        self._watching.add(watch)
        return watch


class _Check:
    """One question."""

    def __init__(self, health: Health, call: Call) -> None:
        self._health = health
        self._call = call

    def message(self, data: bytes) -> None:
        """Answer it."""
        try:
            service = StringValue.FromString(data).value
        except DecodeError:
            self._call.fail(INVALID_ARGUMENT, "no HealthCheckRequest")
            return
        status = self._health.status(service)
        if status:
            self._call.answer(_told(status))
            self._call.finish()
        else:
            self._call.fail(NOT_FOUND, f"there is no service {service}")

    def half_closed(self) -> None:
        """The question is whole."""

    def gone(self) -> None:
        """Nobody waits for the answer."""


class _Watch:
    """One that is told of every change."""

    def __init__(self, health: Health, call: Call, watching: set[_Watch]) -> None:
        self._health = health
        self._call = call
        self._watching = watching
        self._service: str | None = None
        self._told = 0

    def message(self, data: bytes) -> None:
        """What is to be watched: tell how it is now."""
        try:
            self._service = StringValue.FromString(data).value
        except DecodeError:
            self._call.fail(INVALID_ARGUMENT, "no HealthCheckRequest")
            return
        self.tell()

    def tell(self) -> None:
        """Tell the status where it has changed."""
        if self._service is None:
            return
        status = self._health.status(self._service) or _SERVICE_UNKNOWN
        if status != self._told:
            self._told = status
            self._call.answer(_told(status))

    def half_closed(self) -> None:
        """It listens on."""

    def gone(self) -> None:
        """It listens no more."""
        self._watching.discard(self)
