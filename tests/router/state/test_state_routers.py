"""Whole routers: App objects in one event loop, and processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
import pytest
from redis_server import RedisServer
from state_world import until

from router.app import App
from router.config import Settings


class Replica:
    """Counts its requests and answers each in a stream that ends when it is let go."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def start(self) -> Replica:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ")[1]
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if path == b"/metrics":
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                    continue
                if path != b"/v1/chat/completions":
                    models = b'{"object":"list","data":[{"id":"m"}]}'
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(models))
                    writer.write(models)
                    continue
                self.seen.append(json.loads(body)["messages"][0]["content"])
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                    b"transfer-encoding: chunked\r\n\r\n"
                )
                for data in (b'data: {"a":1}\n\n', b"data: [DONE]\n\n"):
                    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
                    await writer.drain()
                    await self.hold.wait()
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    made = [await Replica().start() for _ in range(4)]
    yield made
    for replica in made:
        replica.server.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as made:
        yield made


BLOCKS = 14
"""Of a prompt."""


def prompt(number: int) -> str:
    return f"{number} " + "about the weather " * 200


async def ask(client: httpx.AsyncClient, port: int, content: str) -> int:
    body = {
        "model": "m",
        "stream": True,
        "messages": [{"role": "user", "content": content}],
    }
    answer = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body)
    assert answer.text.endswith("[DONE]\n\n")
    return answer.status_code


def where(replicas: list[Replica], content: str) -> list[int]:
    """The replica of each request with this content, in no order."""
    return [k for k, replica in enumerate(replicas) for seen in replica.seen if seen == content]


async def started(stack: AsyncExitStack, replicas: list[Replica], url: str) -> App:
    app = App(
        Settings(
            replicas=tuple(replica.url for replica in replicas),
            port=0,
            admin_port=0,
            access_log=0.0,
            drain_timeout=1.0,
            slow_start=0.0,
            health_timeout=60.0,
            prefill_rate=8000,
            state=url,
        )
    )
    await app.start()
    stack.push_async_callback(app.stop)
    await app.ready()
    return app


async def test_thirty_of_thirty(
    replicas: list[Replica], client: httpx.AsyncClient, redis: RedisServer
) -> None:
    prompts = [prompt(number) for number in range(30)]
    async with AsyncExitStack() as stack:
        a = await started(stack, replicas, redis.url)
        async with AsyncExitStack() as second:
            b = await started(second, replicas, redis.url)
            for content in prompts:
                assert await ask(client, a.port, content) == 200
            await asyncio.sleep(0.1)
            for content in prompts:
                assert await ask(client, b.port, content) == 200
            assert [len(set(where(replicas, content))) for content in prompts] == [1] * 30
            assert len({where(replicas, content)[0] for content in prompts}) > 1
            admin = await client.get(f"http://127.0.0.1:{b.admin.port}/readyz")
            assert admin.json()["state"] == "shared"
            told = (await client.get(f"http://127.0.0.1:{b.admin.port}/metrics")).text
            assert "warmroute_state_up 1" in told
            assert "warmroute_state_routers 1" in told
        again = await started(stack, replicas, redis.url)
        for content in prompts:
            assert await ask(client, again.port, content) == 200
        assert [len(set(where(replicas, content))) for content in prompts] == [1] * 30
        redis.kill()
        assert again.shared is not None
        await until(lambda: not again.shared.up)
        for content in prompts:
            assert await ask(client, again.port, content) == 200
        assert [len(set(where(replicas, content))) for content in prompts] == [1] * 30
        admin = await client.get(f"http://127.0.0.1:{again.admin.port}/readyz")
        assert admin.status_code == 200
        assert admin.json()["state"] == "local only"


class Process:
    """A router in a process of its own."""

    def __init__(self, folder: Path, replicas: list[Replica], *flags: str) -> None:
        self.log = folder / f"router-{os.urandom(3).hex()}.log"
        command = [
            sys.executable,
            "-m",
            "router.cli.main",
            "serve",
            "--port",
            "0",
            "--admin-port",
            "0",
        ]
        command += [f for replica in replicas for f in ("--replica", replica.url)]
        command += ["--settle-time", "0", "--drain-timeout", "1", "--access-log", "0"]
        # A slow machine is not what is tested.
        command += ["--health-timeout", "60", "--prefill-rate", "8000", "--slow-start", "0", *flags]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    async def ready(self, client: httpx.AsyncClient) -> Process:
        pattern = r"(?:on http://[\d.]+:|workers on port )(\d+), admin on http://[\d.]+:(\d+)"
        await until(lambda: re.search(pattern, self.log.read_text()), 40)
        found = re.search(pattern, self.log.read_text())
        assert found is not None
        self.port, self.admin = map(int, found.groups())
        for _ in range(800):
            with suppress(httpx.HTTPError):
                answer = await client.get(f"http://127.0.0.1:{self.admin}/readyz")
                if answer.status_code == 200:
                    return self
            await asyncio.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def children(self) -> list[int]:
        pid = self.process.pid
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def settled(client: httpx.AsyncClient, one: Process, blocks: int) -> None:
    """Wait until a router knows so many blocks, and of no request in flight, its own or others'."""
    for _ in range(400):
        told = (await client.get(f"http://127.0.0.1:{one.admin}/metrics")).text
        known, in_flight = (
            sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", told, re.M)))
            for name in ("warmroute_index_blocks", "warmroute_in_flight")
        )
        if known == blocks and not in_flight:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{known:g} of {blocks} blocks, {in_flight:g} requests in flight")


async def test_one_of_three_is_killed(
    replicas: list[Replica], client: httpx.AsyncClient, redis: RedisServer, tmp_path: Path
) -> None:
    made = [Process(tmp_path, replicas, "--state", redis.url) for _ in range(3)]
    try:
        for one in made:
            await one.ready(client)
        prompts = [prompt(number) for number in range(12)]
        for number, content in enumerate(prompts):
            assert await ask(client, made[number % 3].port, content) == 200
        # A router that has not heard yet that these ended takes their replicas for busy.
        for one in made:
            await settled(client, one, BLOCKS * len(prompts))
        for replica in replicas:
            replica.hold.clear()
        streams = [
            asyncio.create_task(ask(client, made[number % 3].port, content))
            for number, content in enumerate(prompts)
        ]
        await until(lambda: sum(len(replica.seen) for replica in replicas) == 24)
        made[0].process.send_signal(signal.SIGKILL)
        await asyncio.sleep(0.2)
        for replica in replicas:
            replica.hold.set()
        ended = await asyncio.gather(*streams, return_exceptions=True)
        for number, result in enumerate(ended):
            assert (result == 200) == (number % 3 != 0), (number, result)
        # what the dead one had learned is not lost, and its load is taken off the books
        for number, content in enumerate(prompts):
            assert await ask(client, made[1 + number % 2].port, content) == 200
        assert [len(set(where(replicas, content))) for content in prompts] == [1] * 12
        await settled(client, made[1], BLOCKS * len(prompts))
    finally:
        for one in made:
            one.end()


async def test_workers(replicas: list[Replica], client: httpx.AsyncClient, tmp_path: Path) -> None:
    one = Process(tmp_path, replicas, "--workers", "2")
    try:
        await one.ready(client)
        prompts = [prompt(number) for number in range(10)]
        for content in prompts * 3:
            async with httpx.AsyncClient(timeout=20, trust_env=False) as fresh:
                assert await ask(fresh, one.port, content) == 200
            await asyncio.sleep(0.03)
        assert [len(set(where(replicas, content))) for content in prompts] == [1] * 10
        admin = f"http://127.0.0.1:{one.admin}"
        told = (await client.get(f"{admin}/metrics")).text
        served = re.findall(r'^warmroute_requests_total\{worker="(\d)".*\} (\d+)', told, re.M)
        assert {worker for worker, _ in served} == {"0", "1"}
        assert sum(int(count) for _, count in served) == 30
        assert told.count("# TYPE warmroute_requests_total") == 1
        fleet = (await client.get(f"{admin}/replicas")).json()
        assert sum(each["requests"] for each in fleet) == 30
        assert len({each["name"] for each in fleet}) == len(fleet) == len(replicas)
        queue = (await client.get(f"{admin}/queue")).json()
        assert queue["outcomes"]["direct"] == 30
        policies = (await client.get(f"{admin}/policies")).json()
        assert sum(each["requests"] for each in policies["decisions"]) == 30
        latest = (await client.get(f"{admin}/explain")).json()
        assert len(latest) == 30
        request = latest[-1]["request_id"] if "request_id" in latest[-1] else latest[-1]["id"]
        assert (await client.get(f"{admin}/explain/{request}")).status_code == 200
        name = replicas[0].url.removeprefix("http://")
        headers = {"x-warmroute-admin": "1"}
        drained = await client.post(f"{admin}/replicas/{name}/drain", headers=headers)
        assert drained.status_code == 200
        told = (await client.get(f"{admin}/metrics")).text
        states = re.findall(r'^warmroute_replica_state\{.*state="draining"\}', told, re.M)
        assert len(states) == 2
        await client.post(f"{admin}/replicas/{name}/undrain", headers=headers)
        # Replicas registered here are known to all workers, and to one that starts later.
        added = await Replica().start()
        registered = {"url": added.url}
        answer = await client.post(f"{admin}/replicas", json=registered)
        assert answer.status_code == 201
        gone = replicas[3].url.removeprefix("http://")
        answer = await client.delete(f"{admin}/replicas/{gone}", headers=headers)
        assert answer.status_code == 200
        # one dies: it is replaced, and the new one knows what the other knows
        first, second = one.children()
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(one.children()) == 2 and first not in one.children())
        assert second in one.children()
        await one.ready(client)
        told = (await client.get(f"{admin}/metrics")).text
        blocks = re.findall(r"^warmroute_index_blocks\{.*\} (\d+)", told, re.M)
        assert len(blocks) == 2
        assert blocks[0] == blocks[1] != "0"
        members = {added.url, *(replica.url for replica in replicas[:3])}
        both = {(worker, url.removeprefix("http://")) for worker in "01" for url in members}

        async def known() -> set[tuple[str, str]]:
            told = (await client.get(f"{admin}/metrics")).text
            pattern = r'^warmroute_replica_usable\{worker="(\d)",replica="(.*)"\}'
            return set(re.findall(pattern, told, re.M))

        async with asyncio.timeout(10):
            while await known() != both:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        one.process.terminate()
        assert await asyncio.to_thread(one.process.wait, 15) == 0
    finally:
        one.end()


async def test_workers_know_each_others_sessions(
    replicas: list[Replica], client: httpx.AsyncClient, tmp_path: Path
) -> None:
    one = Process(tmp_path, replicas, "--workers", "2", "--kv-cache-tokens", "100000")

    async def told(pattern: str) -> list[tuple[str, ...]]:
        text = (await client.get(f"http://127.0.0.1:{one.admin}/metrics")).text
        return re.findall(pattern, text, re.M)

    async def counted(state: str) -> list[tuple[str, ...]]:
        return await told(rf'^warmroute_sessions\{{worker="(\d)",state="{state}"\}} (\d+)')

    async def all_in(state: str, count: str, within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while await counted(state) != [("0", count), ("1", count)]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def session(number: int) -> int:
        headers = {"x-session-id": str(number)}
        async with httpx.AsyncClient(timeout=20, trust_env=False, headers=headers) as fresh:
            return await ask(fresh, one.port, prompt(number))

    try:
        await one.ready(client)
        # The door is there from the first look on, half a second after the start.
        async with asyncio.timeout(40):
            while True:
                assert await session(100) == 200
                # What one worker has been told is told to the other a moment later.
                with contextlib.suppress(TimeoutError):
                    await all_in("idle", "1", within=2.0)
                    break
        assert len(await told("^warmroute_session_kv_wanted_ratio{")) == 8
        for replica in replicas:
            replica.hold.clear()
        asking = [asyncio.create_task(session(number)) for number in range(8)]
        await all_in("active", "8")
        for replica in replicas:
            replica.hold.set()
        assert await asyncio.gather(*asking) == [200] * 8
        await all_in("idle", "9")
    finally:
        one.end()


async def test_a_port_that_is_taken_is_told(replicas: list[Replica], tmp_path: Path) -> None:
    taken = str(replicas[0].port)
    one = Process(tmp_path, replicas[1:], "--workers", "2", "--port", taken)
    try:
        assert await asyncio.to_thread(one.process.wait, 15) == 1
        assert "cannot listen" in one.log.read_text()
    finally:
        one.end()
