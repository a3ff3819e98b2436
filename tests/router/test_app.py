"""A router's whole life, as a process: starting, stopping under load, being told twice."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import Any

import httpx
import pytest
from router_process import Serve

from loadgen.replicas import SimulatedFleet
from loadgen.replicas.replica import Replica

LONG = {"model": "sim", "prompt": "hello", "max_tokens": 400, "stream": True}
SHORT = {"model": "sim", "prompt": "hello", "max_tokens": 2}


def posted(replica: Replica) -> bool:
    """Whether a request of a client has come."""
    return any(request.path == "/v1/completions" for request in replica.requests)


async def stream(client: httpx.AsyncClient, begun: asyncio.Event, body: Any = LONG) -> str:
    """A whole stream; begun is set when its first bytes are there."""
    text = ""
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for part in answer.aiter_text():
            text += part
            begun.set()
    return text


async def test_stopping_under_load_loses_nothing(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await (await serve(*fleet.urls, settle_time=3)).ready()
    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        begun = [asyncio.Event() for _ in range(20)]
        streams = [asyncio.create_task(stream(client, event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))
        answered = 0
        stopping = closed = False

        async def keep_asking() -> None:
            """On connections kept alive, and on new ones, until nobody listens."""
            nonlocal answered, closed
            while not closed:
                try:
                    answer = await client.post("/v1/completions", json=SHORT)
                except httpx.ConnectError:
                    closed = True
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    # A kept connection was closed while idle, which every client of HTTP/1.1
                    # must expect: only when nothing is listened for any more.
                    assert stopping
                else:
                    assert answer.status_code == 200
                    answered += 1
                    if stopping:
                        assert answer.headers["connection"] == "close"

        asking = [asyncio.create_task(keep_asking()) for _ in range(5)]
        async with httpx.AsyncClient(base_url=router.admin, timeout=30) as admin:
            router.signal()
            await router.says("stopping")
            before = answered
            assert (await admin.get("/readyz")).status_code == 503
            assert (await admin.get("/healthz")).status_code == 200
        # Those on their way when it began may not have been told yet.
        await asyncio.sleep(0.1)
        stopping = True
        texts = await asyncio.gather(*streams)
        await asyncio.gather(*asking)
    assert answered > before + 5
    assert await router.exit() == 0
    assert all(text.endswith("data: [DONE]\n\n") and "error" not in text for text in texts)
    assert len(set(map(len, texts))) <= 3
    assert "Traceback" not in router.log
    assert "cut off" not in router.log


async def test_drain_timeout_cuts(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await (await serve(*fleet.urls, settle_time=0, drain_timeout=0.3)).ready()
    for replica in fleet.replicas:
        await replica.freeze()
    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        asked = asyncio.create_task(client.post("/v1/completions", json=SHORT))
        while not any(posted(replica) for replica in fleet.replicas):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        router.signal()
        with pytest.raises(httpx.RemoteProtocolError):
            await asked
    assert await router.exit() == 0
    assert "1 client connections were cut off" in router.log
    # The replica was told, too.
    for replica in fleet.replicas:
        assert not replica.engine.running


async def test_more_signals_hurry_it(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await (await serve(*fleet.urls, settle_time=600, drain_timeout=600)).ready()
    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        begun = asyncio.Event()
        body = {**LONG, "max_tokens": 60_000}
        streaming = asyncio.create_task(stream(client, begun, body))
        await begun.wait()
        router.signal()
        await router.says("stopping")
        assert (await client.post("/v1/completions", json=SHORT)).status_code == 200
        router.signal(signal.SIGINT)
        # No longer listening, and the stream goes on.
        async with asyncio.timeout(30):
            while True:
                try:
                    await httpx.AsyncClient().get(f"{router.front}/health")
                except httpx.ConnectError:
                    break
        assert not streaming.done()
        router.signal()
        with pytest.raises(httpx.RemoteProtocolError):
            await streaming
    assert await router.exit() == 0


async def test_stopped_before_it_was_ready(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        router = await (await serve(url, settle_time=0)).listening()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{router.admin}/readyz")).status_code == 503
            assert (await client.get(f"{router.front}/health")).status_code == 503
        router.signal()
        assert await router.exit() == 0


async def test_ports_that_are_taken(fleet: SimulatedFleet, serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("port", "admin_port"):
            router = await serve(*fleet.urls, **{name: port})
            assert await router.exit() == 1
            assert str(port) in router.log
            assert "Traceback" not in router.log


async def test_a_replica_killed_under_load(serve: Serve) -> None:
    async with SimulatedFleet(3) as fleet:
        router = await (await serve(*fleet.urls, settle_time=0, slow_start=0)).ready()
        async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
            failed: list[str] = []
            done = False

            async def keep_asking() -> None:
                while not done:
                    answer = await client.post("/v1/completions", json={**SHORT, "max_tokens": 20})
                    if answer.status_code != 200:
                        failed.append(answer.text)

            asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
            victim = fleet.replicas[0]
            await asyncio.sleep(0.3)
            await victim.die()
            started = time.monotonic()
            await asyncio.sleep(0.5)
            async with httpx.AsyncClient(base_url=router.admin, timeout=30) as admin:
                async with asyncio.timeout(5):
                    while "unhealthy" not in (await admin.get("/replicas")).text:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                assert time.monotonic() - started < 5
                await victim.start()
                victim.requests.clear()
                async with asyncio.timeout(15):
                    while "unhealthy" in (await admin.get("/replicas")).text:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                async with asyncio.timeout(15):
                    while not posted(victim):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            done = True
            await asyncio.gather(*asking)
    # What it was at work on when it died went to another one.
    assert failed == []


async def test_all_replicas_down(fleet: SimulatedFleet, serve: Serve) -> None:
    router = await (await serve(*fleet.urls, settle_time=0, retry_after=9)).ready()
    for replica in fleet.replicas:
        await replica.die()
    async with httpx.AsyncClient(base_url=router.front, timeout=30) as client:
        async with asyncio.timeout(15):
            while (await client.post("/v1/completions", json=SHORT)).status_code != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        started = time.monotonic()
        answer = await client.post("/v1/completions", json=SHORT)
        assert time.monotonic() - started < 1
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
        await fleet.replicas[0].start()
        async with asyncio.timeout(15):
            while (await client.post("/v1/completions", json=SHORT)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
