"""The real openai and anthropic clients, through the gateway, to a real engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from caught_up import PATIENT, CaughtUp

from bench.gateways import Gateway, gateway
from bench.sessions import TOOL
from bench.vllm import metrics_of

MESSAGES: Any = [{"role": "user", "content": "Count to ten, please. " * 20}]
TOOLS: Any = [TOOL]
LONG = 3500


@pytest.fixture
async def started(urls: list[str]) -> AsyncIterator[Gateway]:
    async with gateway(urls, *PATIENT, "--exact") as one:
        yield one


@pytest.fixture
async def client(started: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=started.url + "/v1", api_key="x", max_retries=0) as one:
        yield one


@pytest.fixture
async def claude(started: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=started.url, api_key="x", max_retries=0) as one:
        yield one


async def test_a_chat_with_usage(client: openai.AsyncOpenAI) -> None:
    for _ in range(2):
        answer = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=5, temperature=0
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens


async def test_a_stream_whose_usage_was_not_asked_for_shows_none(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_a_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=8, stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


async def test_tools_are_passed_on(client: openai.AsyncOpenAI) -> None:
    with_tools = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=2, tools=TOOLS
    )
    without = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2)
    assert with_tools.usage is not None
    assert without.usage is not None
    assert with_tools.usage.prompt_tokens > without.usage.prompt_tokens + 20


async def test_a_named_tool_is_passed_on(client: openai.AsyncOpenAI) -> None:
    """What a model of random weights makes of it is no call; that it is accepted is what shows."""
    choice: Any = {"type": "function", "function": {"name": "run"}}
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=4, tools=TOOLS, tool_choice=choice
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    choice["function"]["name"] = "walk"
    with pytest.raises(openai.BadRequestError, match="tool"):
        await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=4, tools=TOOLS, tool_choice=choice
        )


async def test_errors_come_through(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        await client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=-1)
    long: Any = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.chat.completions.create(model="tiny", messages=long, max_tokens=1)


async def test_completions_and_models(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt="Once upon", max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert [model.id async for model in client.models.list()] == ["tiny"]


async def test_responses(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(
        model="tiny", input="Say something.", max_output_tokens=8
    )
    assert answer.usage is not None
    assert answer.usage.output_tokens == 8


async def test_claudes_messages_are_predicted_too(
    claude: anthropic.AsyncAnthropic, started: Gateway, urls: list[str]
) -> None:
    tools: Any = [
        {
            "name": "run",
            "description": "Runs.",
            "input_schema": {"type": "object", "properties": {}},
        }
    ]
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "Please run it. " * 30}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "run", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "ok"}]},
    ]  # fmt: skip
    async with CaughtUp(started, urls) as caught_up:
        for _ in range(2):
            raw = await claude.messages.with_raw_response.create(
                model="tiny", max_tokens=4, system="Be brief.", messages=messages, tools=tools,
                extra_headers={"x-warmroute-explain": "1"},
            )  # fmt: skip
            await caught_up(raw.headers["x-warmroute-replica"])
    answer = await raw.parse()
    assert answer.usage.output_tokens == 4
    assert answer.usage.cache_read_input_tokens
    predicted = int(raw.headers["x-warmroute-predicted-tokens"])
    assert predicted == answer.usage.cache_read_input_tokens


async def test_claudes_stream(claude: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "Go on."}]
    async with claude.messages.stream(model="tiny", max_tokens=6, messages=messages) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_message()
    assert final.usage.output_tokens == 6
    assert final.stop_reason == "max_tokens"


async def told(urls: list[str]) -> tuple[float, float]:
    """Requests running in the engines, and tokens written so far, as their own metrics have it."""
    texts = [await metrics_of(url) for url in urls]
    running, written = (
        sum(sum(map(float, re.findall(rf"^vllm:{name}\S* (\S+)", text, re.M))) for text in texts)
        for name in ("num_requests_running", "generation_tokens_total")
    )
    return running, written


async def test_a_client_that_leaves_stops_the_engine(
    client: openai.AsyncOpenAI, urls: list[str]
) -> None:
    """Nothing runs any more before the answer is written. Where we are so slow that the engine is
    done before we leave, we try again: one that is not stopped always writes all."""
    extra: Any = {"ignore_eos": True}
    for _ in range(10):
        while (before := await told(urls))[0]:  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.05)
        stream = await client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=LONG, stream=True, extra_body=extra
        )
        await anext(aiter(stream))
        await stream.close()
        while (after := await told(urls))[0] or after[1] == before[1]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if after[1] - before[1] < LONG:
            return
    pytest.fail(f"the engine went on to all of the {LONG} tokens")
