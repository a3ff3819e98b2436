"""Follows one kind of object in one namespace: list, then watch from there, again and again.

Protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/ (efficient detection of
changes). A watch ends for many reasons, most of them normal; what is known stays until a new list
replaces it.

It runs in a thread of its own, because the official client blocks. Its mutable state is
`_objects`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import urllib3
from kubernetes.client.exceptions import ApiException

from router.discovery.objects import Metadata


class Object(Protocol):
    """What any Kubernetes object has."""

    metadata: Metadata


T = TypeVar("T", bound=Object)

WATCH_SECONDS = 290
"""Asked of the server; it ends the watch then, and the next one goes on where it was."""
SILENCE_TIMEOUT_S = WATCH_SECONDS + 20.0
"""Seconds without a byte after which the connection is given up, whatever the server was asked."""
CONNECT_TIMEOUT_S = 5.0
PAGE_OBJECTS = 500
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 15.0
"""Seconds between attempts while they fail: doubled each time, and spread by half."""
LONGEST_LINE = 64 * 1024 * 1024


class Call(Protocol):
    """A list method of the client, such as list_namespaced_pod with its namespace bound."""

    def __call__(self, **options: Any) -> urllib3.HTTPResponse: ...


class GoneError(Exception):
    """The version to go on from is too old: 410."""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: Metadata


class _Status(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""


_lists = msgspec.json.Decoder(_List)
_events = msgspec.json.Decoder(_Event)
_bookmarks = msgspec.json.Decoder(_Bookmark)
_statuses = msgspec.json.Decoder(_Status)


class Reflector(Generic[T]):
    """Keeps a copy of the objects that `call` lists.

    `changed` is given all of them after every change, and `failed` what went wrong (empty once it
    works again), both from the reflector's thread. `renew` is called when the server no longer
    takes our credentials, before the next attempt.
    """

    def __init__(
        self,
        name: str,
        kind: type[T],
        call: Call,
        changed: Callable[[list[T]], None],
        failed: Callable[[str, Exception | None], None],
        renew: Callable[[], None],
    ) -> None:
        self.name = name
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(kind)
        self._call = call
        self._changed = changed
        self._failed = failed
        self._renew = renew
        self._objects: dict[str, T] = {}
        self._stopping = threading.Event()
        self._response: urllib3.HTTPResponse | None = None
        self._works = False
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

    def start(self) -> None:
        """Start the thread that lists and watches."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end, and wake it from its read."""
        self._stopping.set()
        connection = getattr(self._response, "connection", None)
        blocked = getattr(connection, "sock", None)
        if blocked is not None:
            # Closing would not wake a thread that reads, or would wait for it under TLS.
            with contextlib.suppress(OSError):
                blocked.shutdown(socket.SHUT_RDWR)

    def join(self, within: float) -> bool:
        """Wait for its end. False when it has not come by then."""
        self._thread.join(within)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        version = ""
        verb = "list"
        while not self._stopping.is_set():
            try:
                if not version:
                    verb = "list"
                    version = self._list()
                verb = "watch"
                version = self._watch(version)
                pause = FIRST_PAUSE
                continue
            except GoneError:
                # A new list mends it. Should it not, the pause keeps the server from being flooded.
                version = ""
                self._works = False
            except Exception as error:  # whatever it is, the thread must go on
                if self._stopping.is_set():
                    return
                status = getattr(error, "status", None)
                if status == 401:
                    self._renew()
                if status is not None:
                    version = ""
                self._works = False
                self._failed(verb, error)
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _list(self) -> str:
        """Read all there are. Returns the version they are of."""
        found: dict[str, T] = {}
        options: dict[str, Any] = {"limit": PAGE_OBJECTS}
        while True:
            response = self._ask(options, 30.0)
            try:
                page = _lists.decode(response.read())
            finally:
                self._done(response)
            for raw in page.items or ():
                item = self._decoder.decode(raw)
                found[_key(item.metadata)] = item
            if not page.metadata.continue_:
                break
            options["_continue"] = page.metadata.continue_
        self._objects = found
        self._tell()
        return page.metadata.resource_version

    def _watch(self, version: str) -> str:
        """Follow the changes until the server ends it. Returns the version to go on from."""
        options = {
            "watch": True,
            "resource_version": version,
            "allow_watch_bookmarks": True,
            "timeout_seconds": WATCH_SECONDS,
        }
        response = self._ask(options, SILENCE_TIMEOUT_S)
        try:
            if not self._works:
                self._works = True
                self._failed("", None)
            for line in _lines(response):
                version = self._take(_events.decode(line)) or version
        finally:
            self._done(response)
        return version

    def _take(self, event: _Event) -> str:
        """Let one event count. Returns the version it is of."""
        if event.type == "BOOKMARK":
            return _bookmarks.decode(event.object).metadata.resource_version
        if event.type == "ERROR":
            status = _statuses.decode(event.object)
            if status.code == 410:
                raise GoneError
            raise ApiException(status=status.code or 500, reason=status.message or status.reason)
        item = self._decoder.decode(event.object)
        key = _key(item.metadata)
        if event.type == "DELETED":
            self._objects.pop(key, None)
        else:
            self._objects[key] = item
        self._tell()
        return item.metadata.resource_version

    def _tell(self) -> None:
        self._changed(list(self._objects.values()))

    def _ask(self, options: dict[str, Any], silence: float) -> urllib3.HTTPResponse:
        """Call, and raise what is not an answer: ApiException, GoneError, or urllib3's errors."""
        try:
            response = self._call(
                **options, _preload_content=False, _request_timeout=(CONNECT_TIMEOUT_S, silence)
            )
        except ApiException as error:
            # Some versions of the client raise for bad statuses, others leave it to us.
            raise _refusal(error.status, error.body or b"", error.reason) from None
        self._response = response
        if self._stopping.is_set():
            self.stop()
        if 200 <= response.status < 300:
            return response
        try:
            raise _refusal(response.status, response.read(64 * 1024), response.reason)
        finally:
            self._done(response)

    def _done(self, response: urllib3.HTTPResponse) -> None:
        self._response = None
        response.close()
        response.release_conn()


def _key(metadata: Metadata) -> str:
    return f"{metadata.namespace}/{metadata.name}"


def _refusal(status: int, body: bytes | str, reason: str | None) -> Exception:
    """What to raise for a bad status. The body is a Status, which says more than its code."""
    if status == 410:
        return GoneError()
    with contextlib.suppress(msgspec.DecodeError):
        reason = _statuses.decode(body).message or reason
    return ApiException(status=status, reason=reason or "no reason given")


def _lines(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    """The lines of a chunked answer, however the chunks cut them."""
    rest = bytearray()
    for piece in response.stream(amt=None, decode_content=True):
        rest += piece
        if b"\n" not in piece:
            if len(rest) > LONGEST_LINE:
                raise ValueError(f"an event of more than {LONGEST_LINE} bytes")
            continue
        *lines, last = rest.split(b"\n")
        rest = last
        for line in lines:
            if line.strip():
                yield bytes(line)
