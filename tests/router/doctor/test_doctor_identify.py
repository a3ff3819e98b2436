"""What a server is, by its answers: one that can be used, or why it cannot, and the fix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from router.doctor.identify import Identity, identify

VLLM = '{"data": [{"id": "tiny", "owned_by": "vllm", "root": "/tiny"}]}'
OTHER = '{"data": [{"id": "tiny", "owned_by": "library"}]}'
METRICS = 'vllm:num_requests_running{engine="0"} 0.0\n'
NEVER = (0, "")


@asynccontextmanager
async def serving(answers: dict[str, tuple[int, str]]) -> AsyncIterator[str]:
    """A server that gives each path its answer, 404 to others, and never answers NEVER."""
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = answers.get(head.split()[1].decode(), (404, ""))
        if (status, body) == NEVER:
            await ended.wait()
        else:
            text = f"HTTP/1.1 {status} -\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
            writer.write(f"{text}date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n{body}".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        ended.set()
        server.close()
        await server.wait_closed()


async def asked(url: str, within: float = 30.0) -> Identity:
    async with httpx.AsyncClient(timeout=within, trust_env=False) as client:
        return await identify(client, url)


async def test_a_vllm_shows_its_models_and_its_clock() -> None:
    async with serving({"/health": (200, ""), "/v1/models": (200, VLLM)}) as url:
        found = await asked(url)
    assert (found.trouble, found.fix) == ("", "")
    assert [(card["id"], card["root"]) for card in found.cards] == [("tiny", "/tiny")]
    assert found.date == "Mon, 01 Jan 2024 00:00:00 GMT"


async def test_models_of_another_owner_are_believed_where_the_metrics_are_of_vllm() -> None:
    answers = {"/health": (200, ""), "/v1/models": (200, OTHER)}
    async with serving(answers) as url:
        assert "nor are its metrics" in (await asked(url)).trouble
    async with serving({**answers, "/metrics": (200, METRICS)}) as url:
        assert (await asked(url)).trouble == ""


@pytest.mark.parametrize(
    ("answers", "trouble", "fix"),
    [
        (
            {},
            "this is no server of vLLM, SGLang or TensorRT-LLM: /health answers 404",
            "without /v1",
        ),
        ({"/health": (503, "")}, "/health answers 503", "engine's log"),
        ({"/health": (200, "")}, "TensorRT-LLM: /v1/models does not", "without /v1"),
        ({"/health": (200, ""), "/v1/models": (200, "[]")}, "/v1/models does not", "without /v1"),
        (
            {"/health": (200, ""), "/v1/models": (200, '{"data": [{"id": 7}]}')},
            "/v1/models does not",
            "without /v1",
        ),
        (
            {"/health": (200, ""), "/v1/models": (200, '{"data": [{"id": "a", "owned_by": []}]}')},
            "its models are none of theirs",
            "without /v1",
        ),
        ({"/health": (200, ""), "/v1/models": (500, "")}, "/v1/models answers 500", "log"),
        (
            {"/health": (200, ""), "/v1/models": (401, "")},
            "/v1/models requires a key",
            "replica_api_key",
        ),
    ],
)
async def test_why_it_cannot_be_used(
    answers: dict[str, tuple[int, str]], trouble: str, fix: str
) -> None:
    async with serving(answers) as url:
        found = await asked(url)
    assert trouble in found.trouble
    assert fix in found.fix


async def test_silence_is_told_with_its_path() -> None:
    async with serving({"/health": NEVER}) as url:
        found = await asked(url, within=0.2)
    assert found.trouble == "/health did not answer within 0.2 s"


async def test_nobody_is_there() -> None:
    found = await asked("http://127.0.0.1:1")
    assert found.trouble.startswith("/health cannot be reached: ")
    assert "start it" in found.fix
