"""Replicas that do what a test says, clients that write and read bytes, and the router's books."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from router.app import App
from router.config import Settings
from router.http.exchange import Exchange

SECONDS = 10.0
"""How long anything awaited may take; far more than it does."""


async def until(condition: Callable[[], object], within: float = SECONDS) -> None:
    """Wait for what no event tells of."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# -- replicas


@dataclass
class Received:
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    raw_head: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)


Handler = Callable[[Received, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def sized(body: bytes, status: str = "200 OK", extra: str = "") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class ScriptedReplica:
    """Answers health, models and metrics by itself, and what a test gives it for all else."""

    model: str = "m"
    models: tuple[str, ...] = ()
    length: int = 0
    """max_model_len, where it tells it."""
    key: str = ""
    """Asked for at /v1/models, where there is one."""
    own: Counter[str] = field(default_factory=Counter)
    """What the router asks for by itself."""
    metrics: bytes = b""
    """What /metrics says; empty: there is none."""
    metrics_fault: str = ""
    """What is wrong with /metrics: hang, 500, or empty."""
    handler: Handler | None = None
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    """Connections accepted, the router's own calls among them."""
    open: set[asyncio.StreamWriter] = field(default_factory=set)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the router closed a connection while a request was served."""
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    port: int = 0
    host: str = "127.0.0.1"
    tls: Any = None
    _server: asyncio.Server | None = None

    async def start(self) -> ScriptedReplica:
        self._server = await asyncio.start_server(
            self._serve, self.host, self.port, limit=1 << 20, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """As a killed process: the port refuses, connections are reset."""
        if self._server is not None:
            self._server.close()
        for writer in list(self.open):
            writer.transport.abort()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"

    def reply(self, *pieces: bytes) -> None:
        """Answer every request with these bytes, each in a write of its own."""

        async def handler(
            _: Received, __: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)

        self.handler = handler

    def reply_in_steps(self, *pieces: bytes) -> None:
        """Answer with these bytes; before each piece but the first a `step()` is waited for."""

        async def handler(
            _: Received, __: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            for number, piece in enumerate(pieces):
                if number:
                    await self.gate.acquire()
                writer.write(piece)
                await writer.drain()

        self.handler = handler

    def step(self) -> None:
        """Let one more piece go."""
        self.gate.release()

    def reply_and_close(self, *pieces: bytes, reset: bool = False) -> None:
        """Answer with these bytes, then end the connection."""
        self.reply(*pieces)
        send = self.handler
        assert send is not None

        async def handler(
            request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await send(request, reader, writer)
            if reset:
                _reset(writer)
            writer.close()
            raise ConnectionAbortedError

        self.handler = handler

    def hang(self, *pieces: bytes) -> None:
        """Send these bytes and then nothing, until the router leaves; sets `lost` then."""
        self.reply(*pieces)
        send = self.handler
        assert send is not None

        async def handler(
            request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            await send(request, reader, writer)
            await reader.read()
            self.lost.set()
            writer.close()
            raise ConnectionAbortedError

        self.handler = handler

    async def asked(self, count: int = 1) -> None:
        """Wait for this many requests."""
        await until(lambda: len(self.received) >= count)

    async def left(self) -> None:
        """Wait until the router has closed the connection of a request it did not want any more."""
        async with asyncio.timeout(SECONDS):
            await self.lost.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                raw = await reader.readuntil(b"\r\n\r\n")
                first, *lines = raw[:-4].decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                headers = [(k, v.strip()) for k, v in (line.split(":", 1) for line in lines)]
                length = next((int(v) for k, v in headers if k.lower() == "content-length"), 0)
                body = await reader.readexactly(length)
                request = Received(method, target, headers, body, raw)
                if await self._housekeeping(request, reader, writer):
                    continue
                self.received.append(request)
                if self.handler is None:
                    writer.write(sized(b'{"ok":true}'))
                else:
                    await self.handler(request, reader, writer)
                await writer.drain()
        except ConnectionAbortedError:
            pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.lost.set()
        finally:
            self.open.discard(writer)
            writer.close()

    def _list(self) -> bytes:
        length = {"max_model_len": self.length} if self.length else {}
        names = (self.model, *self.models)
        cards = [
            {"id": name, "object": "model", "parent": self.model if number else None, **length}
            for number, name in enumerate(names)
        ]
        return json.dumps({"object": "list", "data": cards}).encode()

    async def _housekeeping(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        target = request.target
        if target == "/health":
            writer.write(sized(b""))
        elif target == "/v1/models" and request.header("user-agent") == "warmroute":
            if self.key and request.header("authorization") != f"Bearer {self.key}":
                writer.write(sized(b"", "401 Unauthorized"))
            else:
                writer.write(sized(self._list()))
        elif target == "/metrics":
            self.own[target] += 1
            if self.metrics_fault == "hang":
                await reader.read()  # until the router leaves
                raise ConnectionAbortedError
            if self.metrics_fault:
                writer.write(
                    sized(b"", "200 OK" if self.metrics_fault == "empty" else "500 Broken")
                )
            else:
                writer.write(sized(self.metrics, "200 OK" if self.metrics else "404 Not Found"))
            return True
        elif target in ("/is_paused", "/is_sleeping"):
            writer.write(sized(b"", "404 Not Found"))
        else:
            return False
        self.own[target] += 1
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()


# -- the router


def settings_for(*urls: str, **settings: object) -> Settings:
    fields: dict[str, object] = {
        "replicas": urls,
        "port": 0,
        "admin_port": 0,
        "access_log": 0.0,
        "drain_timeout": 0.0,
        "policy": "round_robin",
        # Most tests are about bytes, whatever the path; test_http_paths has the list as it is.
        "extra_paths": ("/*",),
        **settings,
    }
    return Settings(**fields)  # type: ignore[arg-type]


def exchanges(app: App) -> list[Exchange]:
    """Those in progress."""
    found = [client.exchange for client in app.front.clients]
    return [exchange for exchange in found if exchange is not None]


def books(app: App) -> dict[str, object]:
    """Everything that must be nothing when nobody asks for anything."""
    gateway = app.gateway
    kept = ("in_flight", "queued_tokens", "context_tokens", "kv_tokens")
    return {
        "exchanges": len(exchanges(app)),
        "clients": len(app.front.clients),
        "tasks": len(gateway.tasks),
        "connections": gateway.live.connections,
        "body_bytes": gateway.live.body_bytes,
        "waiting": gateway.queue.queue.waiting,
        **{f"{name} at gate {gate.slot}": getattr(gate, name)
           for gate in gateway.queue.queue.gates for name in ("sent", "sent_tokens", "running")},
        **{f"{name} of {slot}": getattr(load, name)
           for slot, load in enumerate(app.fleet.loads) for name in kept},
    }  # fmt: skip


# -- clients


class Raw:
    """A client that writes and reads bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *data: bytes) -> None:
        self.writer.writelines(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(SECONDS):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        return int(first.split(" ")[1]), headers

    async def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """One whole answer; a chunked body with its framing."""
        status, headers = await self.head()
        async with asyncio.timeout(SECONDS):
            if method == "HEAD" or status in (204, 304):
                body = b""
            elif "chunked" in headers.get("transfer-encoding", ""):
                body = await self.chunks()
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read()
        return status, headers, body

    async def chunks(self) -> bytes:
        """The raw framing of a chunked body, its end included."""
        out = b""
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            out += line + await self.reader.readexactly(size + 2)
            if not size:
                return out

    async def rest(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.reader.read()

    async def ask(self, *data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send, and read the answer."""
        self.send(*data)
        return await self.answer()

    def close(self) -> None:
        self.writer.close()

    def vanish(self) -> None:
        """Gone, as by a crash."""
        _reset(self.writer)


Connect = Callable[[App], Awaitable[Raw]]
MakeReplica = Callable[..., Awaitable[ScriptedReplica]]
MakeRouter = Callable[..., Awaitable[App]]


def get(path: str, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def unchunked(raw: bytes) -> bytes:
    """The content of a chunked body."""
    out = b""
    while raw:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        out += raw[:size]
        raw = raw[size + 2 :]
        if not size:
            break
    return out


CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
STREAM = json.dumps(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
).encode()
