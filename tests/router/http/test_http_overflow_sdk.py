"""The vendors' own clients, whose requests go to a hosted API: they get what it would tell them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import yaml
from http_world import MakeRouter

from loadgen.replicas import SimulatedFleet
from router.app import App

SAY: Any = [{"role": "user", "content": "hello " * 120}]
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
FUNCTION: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
FLAT: Any = {"type": "function", "name": "weather", "strict": False, "parameters": SCHEMA}
TOOL: Any = {"name": "weather", "input_schema": SCHEMA}
CHANGES = frozenset(("id", "created", "created_at", "completed_at", "item_id", "call_id", "usage"))
"""What is another one with each answer; of usage, what was cached is."""

Ask = Callable[[str, str], Awaitable[Any]]


def plain(found: Any) -> Any:
    """An answer, or a list of events, without what is another one each time."""
    if hasattr(found, "model_dump"):
        found = found.model_dump()
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items() if name not in CHANGES}
    return [plain(each) for each in found] if isinstance(found, list) else found


async def chat(url: str, model: str, **more: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": model, "messages": SAY, "max_tokens": 9, **more}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        return [whole, [part async for part in stream]]


async def chat_tools(url: str, model: str) -> Any:
    return await chat(url, model, tools=[FUNCTION], tool_choice="required", max_tokens=64)


async def responses(url: str, model: str, **more: Any) -> Any:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
        asked: Any = {"model": model, "input": "hello", "max_output_tokens": 64, **more}
        whole = await client.responses.create(**asked)
        stream = await client.responses.create(**asked, stream=True)
        return [whole, [part async for part in stream]]


async def responses_tools(url: str, model: str) -> Any:
    return await responses(url, model, tools=[FLAT], tool_choice="required")


async def messages(url: str, model: str, **more: Any) -> Any:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as client:
        asked: Any = {"model": model, "messages": SAY, "max_tokens": 64, **more}
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            events = [part async for part in stream]
            return [whole, events, await stream.get_final_message()]


async def messages_tools(url: str, model: str) -> Any:
    return await messages(url, model, tools=[TOOL], tool_choice={"type": "any"})


@pytest.fixture
async def hosted() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(1, model="far") as made:
        yield made


@pytest.fixture
async def app(hosted: SimulatedFleet, router: MakeRouter, tmp_path: Path) -> AsyncIterator[App]:
    """A router whose only replica takes nothing just now."""
    (tmp_path / "key").write_text("secret")
    target = {
        "name": "hosted", "url": hosted.urls[0], "key_file": str(tmp_path / "key"),
        "models": {"near": "far"}, "prompt_price": 1.0, "output_price": 1.0, "daily_budget": 1.0,
    }  # fmt: skip
    path = tmp_path / "overflow.yaml"
    path.write_text(yaml.safe_dump({"targets": [target]}))
    async with SimulatedFleet(1, model="near") as fleet:
        made = await router(*fleet.urls, overflow=str(path))
        made.fleet.drain(made.fleet.members()[0].url)
        yield made


@pytest.mark.parametrize(
    "ask", [chat, chat_tools, responses, responses_tools, messages, messages_tools]
)
async def test_an_answer_from_outside_is_the_one_that_the_api_gives(
    ask: Ask, app: App, hosted: SimulatedFleet
) -> None:
    direct = plain(await ask(hosted.urls[0], "far"))
    through = plain(await ask(f"http://127.0.0.1:{app.port}", "near"))
    assert through == direct
    assert app.overflow is not None
    (target,) = app.overflow.targets
    assert target.requests["no_replica"] == 2
    assert 0.0 < target.money < 0.001
