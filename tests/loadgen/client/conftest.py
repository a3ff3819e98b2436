"""A server of raw bytes, so that every way to answer badly can be tried."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

Answer = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


class Seen:
    """One request as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode().split("\r\n")
        self.line = lines[0]
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self.body: Any = json.loads(body)


class RawServer:
    """What was asked, and how often somebody connected."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.connections = 0


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[RawServer]:
    state = RawServer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                seen = Seen(head, await reader.readexactly(size))
                state.seen.append(seen)
                await answer(seen, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    state.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        server.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def token(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def usage(prompt: int, cached: int, output: int) -> bytes:
    return event(
        choices=[],
        usage={
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    )


DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(*events: bytes, head: bytes = HEAD) -> bytes:
    return head + b"".join(chunk(part) for part in events) + b"0\r\n\r\n"


GOOD = stream(token("one "), token("two", "length"), usage(100, 48, 2), DONE)


@pytest.fixture
def wire() -> Any:
    """The helpers above, for tests that cannot import a conftest."""
    import types

    return types.SimpleNamespace(
        raw_server=raw_server,
        event=event,
        token=token,
        usage=usage,
        chunk=chunk,
        stream=stream,
        HEAD=HEAD,
        DONE=DONE,
        GOOD=GOOD,
    )
