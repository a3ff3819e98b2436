"""Reading small things from one replica over HTTP: bounded in time and in size.

Each replica has an httpx transport of its own, which minds no proxy settings of the environment. A
shared client's pool looks at every connection it has for each request, and lets replicas that hang
use up the connections of the others.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from enum import IntEnum

import httpx
import msgspec

from router.descriptors import is_local
from router.fleet.settings import FleetSettings
from router.identity import VIA

CONNECTIONS = 4
"""Health, models, metrics and rest at once."""
IDLE_SECONDS = 4.0
"""vLLM closes idle connections after 5; closing first avoids writing into one just closed."""


class Failure(IntEnum):
    """Ways a read can fail, the more telling ones greater."""

    LOCAL = 0
    """The router could not ask, for a lack of its own: it says nothing about the replica."""
    SLOW = 1
    """No answer in time: frozen, cut off, or with too much to do."""
    BAD = 2
    """An answer that will not do."""
    REFUSED = 3
    """No connection: nobody listens, no route, no such name, no trust."""


class ReadError(Exception):
    """A read gave nothing usable; its text says why."""

    def __init__(self, reason: str, failure: Failure = Failure.BAD) -> None:
        super().__init__(reason)
        self.failure = failure


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer, of any status."""

    status: int
    body: bytes


def tls_context(settings: FleetSettings) -> ssl.SSLContext:
    """The TLS settings for replicas. Raises ValueError when the CA file cannot be used."""
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"CA file {settings.ca!r} cannot be read as PEM: {error}") from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Reader:
    """GETs from one replica, and POSTs that change nothing there."""

    def __init__(self, url: str, api_key: str, tls: ssl.SSLContext) -> None:
        self._url = url
        self._headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "warmroute"}
        self._headers["via"] = VIA
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._requests: dict[str, httpx.Request] = {}
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls,
            limits=httpx.Limits(
                max_connections=CONNECTIONS,
                max_keepalive_connections=CONNECTIONS,
                keepalive_expiry=IDLE_SECONDS,
            ),
        )

    async def get(self, path: str, limit: int, within: float) -> Answer:
        """GET a path below the replica's URL, at most `limit` bytes, all within `within` seconds.

        Raises ReadError when it cannot be reached, is too slow, says too much, or talks no HTTP.
        """
        request = self._requests.get(path)
        if request is None:
            request = httpx.Request("GET", self._url + path, headers=self._headers)
            self._requests[path] = request
        return await self._send(path, request, limit, within)

    async def post(self, path: str, body: bytes, limit: int, within: float) -> Answer:
        """POST some JSON. Otherwise as get."""
        headers = self._headers | {"content-type": "application/json"}
        request = httpx.Request("POST", self._url + path, headers=headers, content=body)
        return await self._send(path, request, limit, within)

    async def _send(self, path: str, request: httpx.Request, limit: int, within: float) -> Answer:
        try:
            async with asyncio.timeout(within):
                return await self._read(request, limit)
        except TimeoutError:
            raise ReadError(f"{path} was not answered within {within:g} s", Failure.SLOW) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            cause = _cause(error)
            if is_local(error):
                raise ReadError(f"{path} could not be asked: {cause}", Failure.LOCAL) from None
            if isinstance(error, httpx.ConnectError):
                raise ReadError(f"cannot connect: {cause}", Failure.REFUSED) from None
            raise ReadError(f"{path}: {cause}") from None

    async def _read(self, request: httpx.Request, limit: int) -> Answer:
        response = await self._transport.handle_async_request(request)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > limit:
                    raise ReadError(f"{request.url.path} answered more than {limit} bytes")
                chunks.append(chunk)
        finally:
            await response.aclose()
        return Answer(response.status_code, b"".join(chunks))

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


def _cause(error: BaseException) -> str:
    """The most telling text in a chain of exceptions: what the system said, if it did."""
    text = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, ssl.SSLError | socket.gaierror):
            text = cause.strerror or text
        elif isinstance(cause, OSError) and cause.errno:
            text = os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return text
