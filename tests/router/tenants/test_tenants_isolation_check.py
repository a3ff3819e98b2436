"""The proof of isolation, on simulated engines and on ones that drop salts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from loadgen.replicas import SimulatedFleet
from router.doctor.engine import Engine
from router.doctor.isolation import findings
from router.tenants.isolation_check import Verdict, check_isolation

Answer = Callable[[str, dict[str, object]], tuple[int, dict[str, object]]]


class OddEngine:
    """An engine whose cached tokens are what a function says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.url = ""

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].partition("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        status, told = self._answer(head.split()[1], body)
        text = json.dumps(told).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(text), text)
        )
        await writer.drain()
        writer.close()


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as made:
        yield made


async def verdicts(client: httpx.AsyncClient, answer: Answer) -> list[Verdict]:
    engine = OddEngine(answer)
    server = await engine.serve()
    try:
        return await check_isolation(client, engine.url, "m")
    finally:
        server.close()


async def test_simulated_engines_keep_salts_apart_on_every_api(client: httpx.AsyncClient) -> None:
    async with SimulatedFleet(1) as fleet:
        found = await check_isolation(client, fleet.urls[0], "sim")
        told = await findings(client, [Engine(fleet.urls[0], models={"sim": ""})])
    assert {"chat", "completions", "responses", "messages"} <= {each.api for each in found}
    assert all(each.proven for each in found), found
    assert not any(finding.wrong for finding in told)


def usage(cached: int | None) -> tuple[int, dict[str, object]]:
    return 200, {"usage": {"prompt_tokens_details": {"cached_tokens": cached}}}


async def test_an_engine_that_drops_salts_on_one_api_is_found(client: httpx.AsyncClient) -> None:
    seen: set[str] = set()

    def answer(path: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        salt = "" if path == "/v1/messages" else body.get("cache_salt", "")
        prompt = json.dumps([salt, body.get("messages"), body.get("prompt")])
        cached = 512 if prompt in seen else 0
        seen.add(prompt)
        return usage(cached) if path in ("/v1/messages", "/v1/completions") else (404, {})

    found = await verdicts(client, answer)
    assert {each.api: (each.leaks, each.proven) for each in found} == {
        "completions": (False, True),
        "token ids": (False, True),
        "messages": (True, False),
    }


async def test_an_engine_that_never_hits_proves_nothing(client: httpx.AsyncClient) -> None:
    found = await verdicts(client, lambda path, body: usage(0))
    assert all(each.never_hits and not each.leaks for each in found)


@pytest.mark.parametrize(
    ("status", "told"), [(401, {}), (200, {}), (200, {"usage": {}}), (200, {"usage": 1})]
)
async def test_what_cannot_be_told_is_not_proven(
    client: httpx.AsyncClient, status: int, told: dict[str, object]
) -> None:
    found = await verdicts(client, lambda path, body: (status, told))
    assert found
    assert all(each.unproven and not each.proven for each in found)


async def test_a_leak_is_wrong_and_says_so(client: httpx.AsyncClient) -> None:
    engine = OddEngine(
        lambda path, body: usage(512) if path.endswith("chat/completions") else (404, {})
    )
    server = await engine.serve()
    (found,) = await findings(client, [Engine(engine.url, models={"m": ""})])
    server.close()
    assert found.wrong
    assert "NOT kept apart" in found.what
