"""An engine as exact mode sees it: HTTP for models, sources and tokens; ZMQ for events."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import uvicorn
import zmq
import zmq.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from router.render.errors import UnrenderedError
from router.render.model import RenderModel

END = b"\xff" * 8


class Publisher:
    """vLLM's event sockets: PUB, and a ROUTER for replay."""

    def __init__(self, *, connect: str = "", topic: str = "kv") -> None:
        """connect: where to connect the PUB socket to instead of binding it."""
        self.context = zmq.asyncio.Context()
        self.topic = topic
        self.buffer: list[tuple[int, bytes]] = []
        self.next = 0
        self.asked = asyncio.Event()
        """A replay was asked for."""
        self.dropped: set[int | None] = set()
        """What the next replay leaves out, as vLLM's does when it is long; None: its end."""
        self._pub = self.context.socket(zmq.PUB)
        self._replay = self.context.socket(zmq.ROUTER)
        self.endpoint = connect
        if connect:
            self._pub.connect(connect)
        else:
            self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
            self.endpoint = f"tcp://*:{self.port}"
        self.replay_port = self._replay.bind_to_random_port("tcp://127.0.0.1")
        self._task = asyncio.create_task(self._serve())

    async def publish(self, *events: dict[str, Any], lost: bool = False) -> None:
        """Send a batch; lost: it only gets into the buffer."""
        payload = msgspec.msgpack.encode([float(self.next), list(events), 0])
        self.buffer.append((self.next, payload))
        if not lost:
            number = self.next.to_bytes(8, "big")
            await self._pub.send_multipart((self.topic.encode(), number, payload))
        self.next += 1

    async def _serve(self) -> None:
        while True:
            client, _, start = await self._replay.recv_multipart()
            dropped, self.dropped = self.dropped, set()
            for number, payload in self.buffer:
                if number >= int.from_bytes(start, "big") and number not in dropped:
                    told = number.to_bytes(8, "big")
                    await self._replay.send_multipart(
                        (client, b"", self.topic.encode(), told, payload)
                    )
            if None not in dropped:
                await self._replay.send_multipart((client, b"", b"", END, b""))
            self.asked.set()

    def source(self) -> dict[str, Any]:
        return {
            "endpoint": self.endpoint,
            "replay_endpoint": f"tcp://*:{self.replay_port}",
            "topic": self.topic,
            "publisher": "zmq",
            "enable_kv_cache_events": True,
        }

    def close(self) -> None:
        self._task.cancel()
        self.context.destroy(linger=0)


class FakeEngine:
    """Serves what exact mode asks for. Tokens are the given model's, `shift` added to each."""

    def __init__(self, model: RenderModel, root: str) -> None:
        self.model = model
        self.shift = 0
        self.cards: list[dict[str, Any]] = [{"id": "m", "object": "model", "root": root}]
        self.publishers: dict[str, Publisher] = {}
        self.compared = 0
        self.url = ""

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.cards})

    async def _sources(self, _: Request) -> Response:
        return JSONResponse({rank: one.source() for rank, one in self.publishers.items()})

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(
            'vllm:cache_config_info{block_size="4",num_gpu_blocks="100"} 1.0\n'
            'vllm:num_requests_running{engine="0"} 0.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
        )

    async def _tokenize(self, request: Request) -> Response:
        self.compared += 1
        body = await request.body()
        api = "completions" if "prompt" in json.loads(body) else "chat"
        try:
            tokens = array("I", self.model.encode(self.model.read(api, body)))
        except UnrenderedError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({"tokens": [token + self.shift for token in tokens]})

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[FakeEngine]:
        async def health(_: Request) -> Response:
            return Response()

        routes = [
            Route("/health", health),
            Route("/v1/models", self._models),
            Route("/metrics", self._metrics),
            Route("/kv_event_sources", self._sources),
            Route("/tokenize", self._tokenize, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.should_exit = True
            await serving
            for publisher in self.publishers.values():
                publisher.close()
