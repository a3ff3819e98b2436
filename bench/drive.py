"""Sends requests and reads their answers with as little work as can be, for benchmarks of a proxy."""

from __future__ import annotations

import asyncio
from typing import Final

_PATIENCE_S: Final = 60.0
"""Seconds that a run may take longer than its rate says, or in all where it has none."""


class Load:
    """Requests over a fixed set of connections, the same for every proxy.

    At a steady rate, which all of them reach; or, without one, as fast as each can. A proxy that keeps
    its neighbours busy is spared the cost of waking them, so that the two are different conditions.
    """

    def __init__(self, port: int, made: list[bytes], count: int, rate: float | None) -> None:
        self.port = port
        self.requests = [request_bytes(body) for body in made]
        self.count = count
        self.rate = rate
        self.sent = 0
        self.answered = 0
        self.waiting = 0
        self.free: list[Client] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, connections: int) -> None:
        """Send them all and wait for the answers."""
        loop = asyncio.get_running_loop()
        made = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port))[1]
            for _ in range(connections)
        ]
        self.free = list(made)
        self.start = loop.time()
        self._tick()
        try:
            async with asyncio.timeout(
                _PATIENCE_S + (self.count / self.rate if self.rate else 0.0)
            ):
                await self.done
        finally:
            for client in made:
                client.transport.close()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self.rate is None:
            self.waiting = self.count
            self._send_waiting()
            return
        due = min(self.count, int((loop.time() - self.start) * self.rate) + 1)
        self.waiting = due - self.sent
        self._send_waiting()
        if self.sent < self.count and not self.done.done():
            loop.call_later(max(0.0005, 1 / self.rate), self._tick)

    def _send_waiting(self) -> None:
        while self.waiting and self.free:
            self.waiting -= 1
            self.free.pop().send(self.requests[self.sent % len(self.requests)])
            self.sent += 1

    def over(self, client: Client) -> None:
        """Called when an answer is complete."""
        self.answered += 1
        self.free.append(client)
        if self.answered == self.count and not self.done.done():
            self.done.set_result(None)
        self._send_waiting()

    def fail(self, why: str) -> None:
        """Called when something makes the run void."""
        if not self.done.done():
            self.done.set_exception(RuntimeError(why))


class Client(asyncio.Protocol):
    """One connection that sends one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.got = b""
        self.length = -1
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> None:
        self.got = b""
        self.length = -1
        self.busy = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.length == -1:
            self.got += data
            end = self.got.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.got[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self.load.fail(f"answer: {self.got[:300]!r}")
                return
            at = head.find(b"content-length: ")
            self.length = -2 if at < 0 else int(head[at + 16 :].split(b"\r\n", 1)[0])
            data = self.got[end + 4 :]
            self.got = b""
        if self.length == -2:
            self.got = (self.got + data)[-5:]
            whole = self.got == b"0\r\n\r\n"
        else:
            self.length -= len(data)
            whole = not self.length
        if whole:
            self.busy = False
            self.load.over(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.load.fail("a connection was closed early")
        elif self in self.load.free:
            # Idle for as long as the proxy keeps connections: the others are enough.
            self.load.free.remove(self)


def request_bytes(body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway:8000\r\nAccept: application/json\r\n"
        b"Accept-Encoding: gzip, deflate\r\nUser-Agent: OpenAI/Python 1.60.0\r\n"
        b"Authorization: Bearer sk-x\r\nContent-Type: application/json\r\n"
        b"X-Stainless-Lang: python\r\nX-Stainless-Retry-Count: 0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


async def drive(
    port: int, made: list[bytes], count: int, connections: int, rate: float | None
) -> None:
    """Send `count` requests over so many connections. rate: a second; None for as fast as it goes."""
    await Load(port, made, count, rate).run(connections)
