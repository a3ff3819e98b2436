"""Engines as the fleet sees them: a few GET answers over real sockets, and ways to be bad at it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from router.fleet.fleet import Fleet


def metrics_text(
    running: float = 0,
    waiting: float = 0,
    queries: float = 0,
    hits: float = 0,
    prompts: int = 0,
    prompt_tokens: float = 0,
    started: float | None = 1.7e9,
    blocks: int | None = 1000,
    block_size: int = 16,
) -> bytes:
    """What an engine's /metrics says, as far as the fleet reads it."""
    labels = '{engine="0",model_name="m"}'
    lines = [
        f"vllm:num_requests_running{labels} {running}",
        f'vllm:num_requests_waiting_by_reason{{engine="0",reason="capacity"}} {waiting}',
        f"vllm:num_requests_waiting{labels} {waiting}",
        f"vllm:prefix_cache_queries_total{labels} {queries}",
        f"vllm:prefix_cache_hits_total{labels} {hits}",
        f"vllm:request_prompt_tokens_count{labels} {prompts}",
        f"vllm:request_prompt_tokens_sum{labels} {prompt_tokens}",
    ]
    if started is not None:
        lines.append(f"process_start_time_seconds {started}")
    if blocks is not None:
        lines.append(
            f'vllm:cache_config_info{{block_size="{block_size}",engine="0",'
            f'num_gpu_blocks="{blocks}",num_gpu_blocks_override="None"}} 1.0'
        )
    return ("\n".join(lines) + "\n").encode()


def models_json(*names: str) -> bytes:
    """An answer to /v1/models."""
    data = [{"id": name, "object": "model", "parent": None} for name in names]
    return json.dumps({"object": "list", "data": data}).encode()


@dataclass
class Engine:
    """A server that answers as it is told, from the next request on."""

    models: bytes = field(default_factory=lambda: models_json("m"))
    metrics: bytes = field(default_factory=metrics_text)
    health_status: int = 200
    models_status: int = 200
    metrics_status: int = 200
    key: str = ""
    """When set, /v1/ wants it as a bearer token, as vLLM does."""
    frozen: frozenset[str] = frozenset()
    """Paths that are read and never answered."""
    slow: dict[str, float] = field(default_factory=dict)
    """Paths that take so many seconds."""
    drip: frozenset[str] = frozenset()
    """Paths answered a byte at a time, for ever."""
    garbage: bytes = b""
    """When set, sent in place of any answer."""
    more: dict[str, bytes] = field(default_factory=dict)
    """Further paths answered with 200, and what with."""
    port: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    heads: list[bytes] = field(default_factory=list)
    _heard: asyncio.Condition = field(default_factory=asyncio.Condition)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def asked_again(self, path: str, times: int = 2) -> None:
        """Wait until a path was asked for so often from now on: all but the last are answered."""
        count = self.asked[path] + times
        async with asyncio.timeout(20), self._heard:
            await self._heard.wait_for(lambda: self.asked[path] >= count)

    async def start(self) -> Engine:
        """Listen; on the port it had, when it runs again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Die: connections break, and new ones are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ", 2)[1].decode()
        self.asked[path] += 1
        self.heads.append(head)
        async with self._heard:
            self._heard.notify_all()
        if path in self.frozen:
            await asyncio.Event().wait()
        if path in self.slow:
            await asyncio.sleep(self.slow[path])
        if self.garbage:
            writer.write(self.garbage)
            await writer.drain()
            raise ConnectionAbortedError
        if path in self.drip:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)
        status, body = {
            "/health": (self.health_status, b""),
            "/v1/models": (self.models_status, self.models),
            "/metrics": (self.metrics_status, self.metrics),
            **{path: (200, body) for path, body in self.more.items()},
        }.get(path, (404, b""))
        if self.key and path.startswith("/v1/") and f"Bearer {self.key}".encode() not in head:
            status, body = 401, b'{"error":"Unauthorized"}'
        writer.write(
            f"HTTP/1.1 {status} Whatever\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()


StartEngine = Callable[..., Awaitable["Engine"]]
StartFleet = Callable[..., Awaitable[Fleet]]
