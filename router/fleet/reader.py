"""Reading small things from one replica over HTTP: bounded in time and in size.

A GET on a connection that is kept, and no more than that: a large fleet is read hundreds of times a
second, and with a general HTTP client that took more of the event loop than the requests did. Proxy
settings of the environment are not minded. Each replica has its own connections, so that those that
hang take none from the others.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from enum import IntEnum
from time import monotonic
from typing import cast

import httptools
import msgspec

from router.config import Settings
from router.config.address import parse_address
from router.descriptors import is_local
from router.identity import VIA

IDLE_CONNECTIONS = 4
"""Enough to read health, models, metrics and rest at the same time."""
MAX_IDLE_S = 4.0
"""vLLM closes idle connections after 5; closing first avoids writing into one just closed."""
MAX_HEAD_BYTES = 64 * 1024
"""The most bytes of an answer besides its body."""


class Failure(IntEnum):
    """Ways in which a read can fail. A greater one says more about the replica."""

    LOCAL = 0
    """The router could not ask, for a lack of its own: it says nothing about the replica."""
    SLOW = 1
    """No answer in time: frozen, cut off, or with too much to do."""
    BAD = 2
    """An answer that cannot be used."""
    REFUSED = 3
    """No connection: nobody listens, no route, no such name, no trust."""


class ReadError(Exception):
    """A read that gave no usable answer; its text says why."""

    def __init__(self, reason: str, failure: Failure = Failure.BAD) -> None:
        super().__init__(reason)
        self.failure = failure


class _BrokenError(Exception):
    """An answer that is not valid HTTP or too large; its text says why."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A complete answer, of any status."""

    status: int
    body: bytes


def tls_context(settings: Settings) -> ssl.SSLContext:
    """The TLS settings for replicas. Raises ValueError when the CA file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=settings.replica_ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"CA file {settings.replica_ca!r} cannot be read as PEM: {error}"
        ) from error
    if not settings.replica_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Connection(asyncio.Protocol):
    """One connection; it serves one read at a time.

    The mutable state is the answer being parsed, and who waits for it.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_body",
        "_framed",
        "_keep_alive",
        "_limit",
        "_parser",
        "_size",
        "_status",
        "_total",
        "_transport",
        "fresh",
        "idle_since",
    )

    def __init__(self) -> None:
        self.fresh = True
        """Nothing was read over it yet."""
        self.idle_since = 0.0
        self._asked: asyncio.Future[Answer] | None = None
        self._keep_alive = True
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, request: bytes, limit: int) -> Answer:
        """The answer to a request. Raises _BrokenError, or OSError when the connection is lost."""
        self._limit = limit
        self._total = self._size = self._status = 0
        self._body: list[bytes] = []
        self._framed = self._answered = False
        asked: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._transport.write(request)
        try:
            return await asked
        except BaseException:
            self.close()
            raise
        finally:
            self._asked = None
            self.fresh = False

    @property
    def untouched(self) -> bool:
        """Whether nothing of an answer has come yet."""
        return not self._total

    @property
    def usable(self) -> bool:
        """Whether another request may be sent over it."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # -- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        asked = self._asked
        if asked is None or asked.done():
            self.close()  # nothing was asked, or more came than that
            return
        self._total += len(data)
        try:
            if self._total > self._limit + MAX_HEAD_BYTES:
                raise _BrokenError(f"answered more than {self._limit} bytes")
            self._parser.feed_data(data)
        except _BrokenError as error:
            asked.set_exception(error)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if not isinstance(cause, _BrokenError):
                cause = _BrokenError(f"not an HTTP answer: {error}")
            asked.set_exception(cause)
        else:
            if self._answered:
                self._done(asked)

    def connection_lost(self, exc: Exception | None) -> None:
        asked = self._asked
        # The parser knows this connection and this connection the parser: break the circle.
        self._parser = None  # type: ignore[assignment]
        if asked is None or asked.done():
            return
        if exc is None and self._status and not self._framed:
            asked.set_result(Answer(self._status, b"".join(self._body)))  # its end is its length
        else:
            asked.set_exception(exc or ConnectionResetError("the connection was closed"))

    def _done(self, asked: asyncio.Future[Answer]) -> None:
        asked.set_result(Answer(self._status, b"".join(self._body)))
        if not self._keep_alive:
            self.close()

    # -- parser

    def on_message_begin(self) -> None:
        if self._answered:
            raise _BrokenError("more than one answer")

    def on_header(self, name: bytes, _value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise _BrokenError(f"answered more than {self._limit} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        self._answered = self._status > 0
        self._keep_alive = self._parser.should_keep_alive()


class Reader:
    """Sends one replica GETs, and POSTs that change nothing there."""

    def __init__(self, url: str, api_key: str, tls: ssl.SSLContext) -> None:
        """`url` is the replica's base URL. Raises AddressError if it is not a valid one."""
        address = parse_address(url)
        self._host = address.host
        self._port = address.port
        self._tls = tls if address.tls else None
        self._prefix = address.prefix
        self._head = (
            f" HTTP/1.1\r\nhost: {address.authority}\r\naccept: */*\r\n"
            f"accept-encoding: identity\r\nuser-agent: warmroute\r\nvia: {VIA}\r\n"
        )
        if api_key:
            self._head += f"authorization: Bearer {api_key}\r\n"
        self._requests: dict[str, bytes] = {}
        self._idle: list[_Connection] = []

    async def get(self, path: str, limit: int, within: float) -> Answer:
        """GET a path below the replica's URL, at most `limit` bytes, all within `within` seconds.

        Raises ReadError when it cannot be reached, is too slow, says too much, or talks no HTTP.
        """
        request = self._requests.get(path)
        if request is None:
            request = f"GET {self._prefix}{path}{self._head}\r\n".encode("latin-1")
            self._requests[path] = request
        return await self._answer(path, request, limit, within)

    async def post(self, path: str, body: bytes, limit: int, within: float) -> Answer:
        """POST a JSON body. Otherwise the same as get."""
        head = (
            f"POST {self._prefix}{path}{self._head}content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return await self._answer(path, head.encode("latin-1") + body, limit, within)

    async def _answer(self, path: str, request: bytes, limit: int, within: float) -> Answer:
        try:
            async with asyncio.timeout(within):
                return await self._read(request, limit)
        except TimeoutError:
            raise ReadError(f"{path} was not answered within {within:g} s", Failure.SLOW) from None
        except (_BrokenError, OSError) as error:
            if is_local(error):
                raise ReadError(
                    f"{path} could not be asked: {_cause(error)}", Failure.LOCAL
                ) from None
            raise ReadError(f"{path}: {_cause(error)}") from None

    async def _read(self, request: bytes, limit: int) -> Answer:
        while True:
            connection = self._take() or await self._connect()
            fresh = connection.fresh
            try:
                answer = await connection.ask(request, limit)
            except OSError:
                if fresh or not connection.untouched:
                    raise
                continue  # closed for having been idle, as this was on its way
            if connection.usable and len(self._idle) < IDLE_CONNECTIONS:
                connection.idle_since = monotonic()
                self._idle.append(connection)
            else:
                connection.close()
            return answer

    def _take(self) -> _Connection | None:
        """An idle connection that is still open."""
        latest = monotonic() - MAX_IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since > latest:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection,
                self._host,
                self._port,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except TimeoutError:
            raise  # ours, or the system's: either way nobody answered in time
        except (OSError, UnicodeError) as error:
            if is_local(error):
                raise  # its text names the path that was to be asked
            raise ReadError(f"cannot connect: {_cause(error)}", Failure.REFUSED) from None
        return connection

    async def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()


def _cause(error: BaseException) -> str:
    """The operating system's error behind an exception, if there is one."""
    if isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror or str(error)
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
