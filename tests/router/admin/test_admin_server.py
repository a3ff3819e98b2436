"""The admin port on a real socket."""

from __future__ import annotations

import asyncio
import signal
import socket

import httpx
import pytest
from admin_world import CHANGE, World

from router.admin.server import AdminServer


async def test_it_serves_in_the_same_loop_and_stops() -> None:
    world = World("http://10.0.0.1:8000")
    world.finish("r1")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    server = AdminServer(world.parts, "127.0.0.1", 0)
    await server.start()
    assert server.port > 0
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/replicas")).json()[0]["hit_rate"] == 0.8
        assert "warmroute_requests_total" in (await client.get("/metrics")).text
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
        answer = await client.get("/healthz")
        assert "server" not in answer.headers
        # The peer is who it is, whatever a header says.
        headers = {**CHANGE, "x-forwarded-for": "10.0.0.7"}
        assert (await client.post("/replicas/all/drain", headers=headers)).status_code == 200
    await server.stop()
    await server.stop()
    with pytest.raises(OSError, match=r"[Cc]onnect"):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"admin server", "admin samples"}


async def test_stopping_waits_for_an_answer_under_way_only_so_long() -> None:
    world = World("http://10.0.0.1:8000")
    server = AdminServer(world.parts, "127.0.0.1", 0)
    await server.start()
    async with httpx.AsyncClient(trust_env=False) as client:  # keeps its connection open
        await client.get(f"http://127.0.0.1:{server.port}/healthz")
        await asyncio.wait_for(server.stop(), 10)


async def test_an_address_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = AdminServer(World().parts, "127.0.0.1", port)
        with pytest.raises(OSError, match=rf"admin address 127\.0\.0\.1:{port}"):
            await server.start()
    await server.stop()


async def test_samples_are_taken() -> None:
    world = World("http://10.0.0.1:8000")
    world.finish("before", delivered=0)
    server = AdminServer(world.parts, "127.0.0.1", 0)
    await server.start()
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        await client.get("/healthz")
        world.finish("after", delivered=500)
        (told,) = (await client.get("/replicas")).json()
    await server.stop()
    assert (told["hit_rate"], told["hit_rate_recent"]) == (0.25, 0.5)
