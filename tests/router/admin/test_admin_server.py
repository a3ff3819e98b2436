"""The admin port on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket

import httpx
import pytest
from admin_world import CHANGE, World

from router.admin import connection
from router.admin.connection import MAX_CONNECTIONS, MAX_HEAD_BYTES
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


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /replicas HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n",
    ],
    ids=["nothing", "head", "body", "second head", "line ends"],
)
async def test_a_request_that_does_not_arrive_ends(
    sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 0.2)
    server = AdminServer(World().parts, "127.0.0.1", 0)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1000):
                pass
    writer.close()
    await server.stop()
    assert not caplog.records


async def test_an_answer_that_nobody_takes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 0.2)
    server = AdminServer(World().parts, "127.0.0.1", 0)
    await server.start()
    monkeypatch.setattr(connection.HttpToolsProtocol, "on_response_complete", lambda _: None)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"}")
    [made] = server._server.server_state.connections
    assert isinstance(made, connection.AdminConnection)
    made.pause_writing()
    made.resume_writing()
    assert made._late is None
    made.pause_writing()
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    await server.stop()


async def test_a_head_without_end_is_cut_off() -> None:
    server = AdminServer(World().parts, "127.0.0.1", 0)
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nx: ")
    lost = False
    async with asyncio.timeout(10):
        try:
            for _ in range((64 << 20) // MAX_HEAD_BYTES):
                writer.write(b"y" * MAX_HEAD_BYTES)
                await writer.drain()
        except ConnectionError:
            lost = True
    assert lost
    writer.close()
    await server.stop()


async def test_connections_that_send_nothing_make_room() -> None:
    server = AdminServer(World().parts, "127.0.0.1", 0)
    await server.start()
    idle = [
        await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS + 3)
    ]
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"http://127.0.0.1:{server.port}/healthz")).status_code == 200
        async with asyncio.timeout(10):
            for reader, _ in idle[:4]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert len(server._server.server_state.connections) == MAX_CONNECTIONS
        assert not any(reader.at_eof() for reader, _ in idle[4:])
    for _, writer in idle:
        writer.close()
    await server.stop()
