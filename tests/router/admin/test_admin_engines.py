"""Calls to engines, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from admin_world import CHANGE, World
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from router.admin.engines import MAX_ANSWER_BYTES, MAX_BODY_BYTES, OPERATIONS
from router.http.routes import RULES, Treatment

JSON = {"content-type": "application/json"}


class Engine:
    """Answers as vLLM does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str, bytes, str]] = []
        self.free = True
        self.app = Starlette(
            routes=[Route("/{path:path}", self._answer, methods=["POST"])],
        )

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append(
            (path, request.url.query, await request.body(),
             request.headers.get("authorization", ""))
        )  # fmt: skip
        if path.endswith("/v1/load_lora_adapter"):
            return PlainTextResponse("Success: LoRA adapter 'a' added successfully.")
        if path.endswith("/v1/unload_lora_adapter"):
            return JSONResponse({"error": {"message": "not found"}}, 404)
        if path.endswith("/reset_prefix_cache"):
            return JSONResponse({"success": self.free})
        if path.endswith("/sleep"):
            return JSONResponse({"status": "sleeping"})
        if path.endswith("/start_profile"):
            return PlainTextResponse("x" * 10 * MAX_ANSWER_BYTES)
        if path.endswith("/stop_profile"):
            return PlainTextResponse(b"\xff\x00")
        return Response(status_code=200)


@asynccontextmanager
async def listening(engine: Engine) -> AsyncIterator[Engine]:
    sock = socket.create_server(("127.0.0.1", 0))
    engine.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(engine.app, log_config=None, lifespan="off", ws="none"))
    task = asyncio.create_task(server._serve([sock]))
    try:
        yield engine
    finally:
        server.should_exit = True
        await task


@pytest.fixture
async def engines() -> AsyncIterator[tuple[Engine, Engine]]:
    async with listening(Engine()) as one, listening(Engine()) as two:
        yield one, two


def name(engine: Engine) -> str:
    return engine.url.removeprefix("http://")


async def test_an_adapter_is_loaded_on_one_replica(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    world = World(one.url + "/base", two.url, api_key="k")
    body = b'{"lora_name": "a", "lora_path": "/a"}'
    async with world.client() as client:
        answer = await client.post(
            f"/replicas/{name(one)}/base/load_lora_adapter", content=body, headers=JSON
        )
    assert answer.status_code == 200
    assert answer.json() == [
        {"replica": name(one) + "/base", "ok": True, "status": 200,
         "body": "Success: LoRA adapter 'a' added successfully."}
    ]  # fmt: skip
    assert one.asked == [("/base/v1/load_lora_adapter", "", body, "Bearer k")]
    assert two.asked == []
    assert world.changed == [(name(one) + "/base", "v1/load_lora_adapter", False)]


async def test_all_replicas_are_called_with_the_query(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    world = World(one.url, two.url)
    async with world.client() as client:
        answer = await client.post("/replicas/all/sleep?level=2&mode=wait", headers=CHANGE)
    assert [(r["replica"], r["body"], r["emptied"]) for r in answer.json()] == [
        (name(one), {"status": "sleeping"}, True),
        (name(two), {"status": "sleeping"}, True),
    ]
    assert one.asked == two.asked == [("/sleep", "level=2&mode=wait", b"", "")]
    assert world.changed == [(name(one), "sleep", True), (name(two), "sleep", True)]


async def test_a_cache_that_was_not_reset_is_not_taken_for_empty(
    engines: tuple[Engine, Engine],
) -> None:
    one, two = engines
    one.free = False
    world = World(one.url, two.url)
    async with world.client() as client:
        await client.post("/replicas/all/reset_prefix_cache", headers=CHANGE)
        await client.post(f"/replicas/{name(one)}/pause?mode=keep", headers=CHANGE)
        await client.post(f"/replicas/{name(one)}/pause", headers=CHANGE)
    assert world.changed == [
        (name(one), "reset_prefix_cache", False),
        (name(two), "reset_prefix_cache", True),
        (name(one), "pause", False),
        (name(one), "pause", True),
    ]


async def test_an_engines_error_is_passed_on(engines: tuple[Engine, Engine]) -> None:
    one, two = engines
    world = World(one.url, two.url)
    async with world.client() as client:
        answer = await client.post("/replicas/all/v1/unload_lora_adapter", headers=JSON)
    assert answer.status_code == 404
    assert [(r["ok"], r["status"]) for r in answer.json()] == [(False, 404)] * 2
    assert answer.json()[0]["body"] == {"error": {"message": "not found"}}
    assert world.changed == []


async def test_a_replica_that_is_away_does_not_hide_the_others(
    engines: tuple[Engine, Engine],
) -> None:
    one, _ = engines
    with socket.create_server(("127.0.0.1", 0)) as gone:
        away = f"http://127.0.0.1:{gone.getsockname()[1]}"
    world = World(away, one.url)
    async with world.client() as client:
        answer = await client.post("/replicas/all/wake_up", headers=CHANGE)
    assert answer.status_code == 502
    first, second = answer.json()
    assert (first["ok"], "status" in first) == (False, False)
    assert "connect" in first["error"].lower()
    assert (second["ok"], second["status"]) == (True, 200)
    assert world.changed == [(name(one), "wake_up", False)]


async def test_a_replica_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        world = World(f"http://127.0.0.1:{silent.getsockname()[1]}")
        world.parts.engines._timeout = 0.05
        async with world.client() as client:
            answer = await client.post("/replicas/all/sleep", headers=CHANGE)
    assert answer.status_code == 502
    assert answer.json()[0]["error"]


async def test_answers_are_bounded_and_need_not_be_text(engines: tuple[Engine, Engine]) -> None:
    one, _ = engines
    async with World(one.url).client() as client:
        long = await client.post("/replicas/all/start_profile", headers=CHANGE)
        odd = await client.post("/replicas/all/stop_profile", headers=CHANGE)
    assert long.json()[0]["body"] == "x" * MAX_ANSWER_BYTES
    assert odd.json()[0]["body"] == "\ufffd\x00"


async def test_bodies_are_bounded(engines: tuple[Engine, Engine]) -> None:
    one, _ = engines
    async with World(one.url).client() as client:
        answer = await client.post(
            "/replicas/all/update_weights", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON
        )
    assert answer.status_code == 413
    assert one.asked == []


def test_every_path_the_gateway_refuses_for_its_state_can_be_called_here() -> None:
    refused = {
        path.removeprefix("/")
        for path, rule in RULES.items()
        if rule.treatment is Treatment.REFUSE and "POST /replicas" in rule.why
    }
    assert refused
    assert refused == set(OPERATIONS)
    assert {operation.path for operation in OPERATIONS.values()} <= refused
