"""The vendors' own clients through the router: what they get is what the replica would tell them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from http_world import SSE_HEAD, MakeReplica, MakeRouter, chunk, event, sized

from loadgen.replicas import SimulatedFleet
from loadgen.replicas.faults import Fault
from router.app import App

SAY: Any = [{"role": "user", "content": "hello " * 120}]
FUNCTION: Any = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
TOOL: Any = {"type": "function", "function": FUNCTION}
ARGUMENTS = '{"city":"warm","days":1}'


def openai_for(url: str, **options: Any) -> openai.AsyncOpenAI:
    fields = {"api_key": "x", "max_retries": 0, **options}
    return openai.AsyncOpenAI(base_url=url + "/v1", **fields)


def anthropic_for(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0)


def front(app: App) -> str:
    return f"http://127.0.0.1:{app.port}"


@pytest.fixture
async def fleet() -> AsyncIterator[SimulatedFleet]:
    async with SimulatedFleet(2, adapters=["lora"]) as made:
        yield made


@pytest.fixture
async def app(fleet: SimulatedFleet, router: MakeRouter) -> App:
    return await router(*fleet.urls, policy="cache_aware")


@pytest.fixture
async def client(app: App) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_for(front(app)) as found:
        yield found


@pytest.fixture
async def claude(app: App) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic_for(front(app)) as found:
        yield found


async def test_chat(client: openai.AsyncOpenAI, app: App) -> None:
    asked: Any = {"model": "sim", "messages": SAY, "max_tokens": 9}
    whole = await client.chat.completions.create(**asked)
    assert whole.usage.completion_tokens == 9
    stream = await client.chat.completions.create(**asked, stream=True)
    chunks = [part async for part in stream]
    # The usage event the router asked for is not there.
    assert all(part.choices and part.usage is None for part in chunks)
    text = "".join(part.choices[0].delta.content or "" for part in chunks)
    assert text == whole.choices[0].message.content
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = [part async for part in stream]
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    # All three were learned from.
    rows = [row.series for row in app.telemetry.rows()]
    assert sum(row.output_tokens for row in rows) == 27
    assert sum(row.prompt_tokens for row in rows) == 3 * whole.usage.prompt_tokens


async def test_chat_tools(client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "sim", "messages": SAY, "tools": [TOOL], "tool_choice": "required"}
    whole = await client.chat.completions.create(**asked)
    assert whole.choices[0].message.tool_calls[0].function.arguments == ARGUMENTS
    stream = await client.chat.completions.create(**asked, stream=True)
    deltas = [part.choices[0].delta async for part in stream]
    calls = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
    assert "".join(call.arguments or "" for call in calls) == ARGUMENTS


@pytest.mark.parametrize("prompt", ["hello", ["hello", "world"], [1, 2, 3], [[1, 2], [3]]])
async def test_completions(prompt: Any, client: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "sim", "prompt": prompt, "max_tokens": 5}
    whole = await client.completions.create(**asked)
    texts = [""] * len(whole.choices)
    stream = await client.completions.create(**asked, stream=True)
    async for part in stream:
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


async def test_responses(client: openai.AsyncOpenAI, app: App) -> None:
    tool = {"type": "function", "strict": False, **FUNCTION}
    asked: Any = {"model": "sim", "input": "hello", "max_output_tokens": 5}
    whole = await client.responses.create(**asked)
    stream = await client.responses.create(**asked, stream=True)
    events = [part async for part in stream]
    text = "".join(part.delta for part in events if part.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].response.usage.output_tokens == 5
    asked |= {"tools": [tool], "tool_choice": "required"}
    whole = await client.responses.create(**asked)
    assert whole.output[0].arguments == ARGUMENTS
    assert sum(row.series.output_tokens for row in app.telemetry.rows()) >= 10


async def test_messages(claude: anthropic.AsyncAnthropic, app: App) -> None:
    asked: Any = {"model": "sim", "messages": SAY, "max_tokens": 7}
    whole = await claude.messages.create(**asked)
    async with claude.messages.stream(**asked) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text
    assert final.usage.output_tokens == 7
    assert final.usage.cache_read_input_tokens > 0
    tool = {"name": "weather", "input_schema": FUNCTION["parameters"]}
    asked |= {"tools": [tool], "tool_choice": {"type": "any"}}
    whole = await claude.messages.create(**asked)
    assert whole.content[0].input == {"city": "warm", "days": 1}
    assert sum(row.series.output_tokens for row in app.telemetry.rows()) >= 14


async def test_adapters_and_models(
    client: openai.AsyncOpenAI, fleet: SimulatedFleet, router: MakeRouter
) -> None:
    whole = await client.chat.completions.create(model="lora", messages=SAY, max_tokens=2)
    assert whole.model == "lora"
    assert {model.id async for model in client.models.list()} == {"sim", "lora"}
    async with SimulatedFleet(1, model="other") as more:
        app = await router(*fleet.urls, *more.urls)
        async with openai_for(front(app)) as both:
            assert {model.id async for model in both.models.list()} == {"sim", "lora", "other"}
            for _ in range(4):
                await both.completions.create(model="other", prompt="a", max_tokens=2)
        sent = [r for r in more.replicas[0].requests if r.path == "/v1/completions"]
        assert len(sent) == 4


async def test_unknown_models(client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(openai.NotFoundError) as found:
        await client.chat.completions.create(model="nobody", messages=SAY)
    assert found.value.code == "404"
    assert "lora, sim" in found.value.message or "sim, lora" in found.value.message
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="nobody", input="a")
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.create(model="nobody", messages=SAY, max_tokens=1)


async def test_bad_requests(client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    # The router's own 400, and the engine's, passed on.
    broken: Any = "no list"
    with pytest.raises(openai.BadRequestError) as found:
        await client.chat.completions.create(model="sim", messages=broken)
    assert found.value.param
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="sim", messages=SAY, max_tokens=-1)
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.create(model="sim", messages=broken, max_tokens=1)


async def test_a_replica_that_dies_mid_stream(
    client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, fleet: SimulatedFleet
) -> None:
    for replica in fleet.replicas:
        await replica.apply(Fault(kind="die_mid_stream", after_tokens=3))
    name = "127.0.0.1"
    with pytest.raises(openai.APIError, match=name):
        async for _ in await client.chat.completions.create(
            model="sim", messages=SAY, max_tokens=50, stream=True
        ):
            pass
    with pytest.raises(openai.APIError, match=name):
        async for _ in await client.completions.create(
            model="sim", prompt="a", max_tokens=50, stream=True
        ):
            pass
    with pytest.raises(openai.APIError, match=name):
        async for _ in await client.responses.create(
            model="sim", input="a", max_output_tokens=50, stream=True
        ):
            pass
    with pytest.raises(anthropic.APIStatusError, match=name):  # noqa: PT012
        async with claude.messages.stream(model="sim", messages=SAY, max_tokens=50) as stream:
            async for _ in stream.text_stream:
                pass


async def test_nobody_there(router: MakeRouter) -> None:
    fleet = SimulatedFleet(2)
    async with fleet:
        app = await router(*fleet.urls, retry_after=7.0)
        for replica in fleet.replicas:
            await replica.die()
        async with openai_for(front(app)) as client:
            with pytest.raises(openai.InternalServerError):
                await client.completions.create(model="sim", prompt="a")
            with pytest.raises(openai.InternalServerError) as found:
                await client.completions.create(model="sim", prompt="a")
        assert found.value.status_code == 503
        assert found.value.response.headers["retry-after"] == "7"


async def test_embeddings_and_audio(replicas: MakeReplica, router: MakeRouter) -> None:
    first, second = await replicas(model="one"), await replicas(model="two")
    first.reply(sized(b'{"object":"list","data":[{"embedding":[1.5],"index":0}],"model":"one"}'))
    second.reply(sized(b'{"text":"spoken"}'))
    app = await router(first, second)
    async with openai_for(front(app)) as client:
        for _ in range(3):
            found = await client.embeddings.create(model="one", input="a", encoding_format="float")
            assert found.data[0].embedding == [1.5]
            # A form, with the model's name before the file or behind it.
            heard = await client.audio.transcriptions.create(
                model="two", file=("a.wav", b"RIFF" * 50_000)
            )
            assert heard.text == "spoken"
    assert len(first.received) == len(second.received) == 3
    assert second.received[0].target == "/v1/audio/transcriptions"
    assert b"RIFF" * 50_000 in second.received[0].body


async def test_cancelled_streams(replicas: MakeReplica, router: MakeRouter) -> None:
    replica = await replicas()
    replica.hang(SSE_HEAD, chunk(event(choices=[{"index": 0, "delta": {"content": "a"}}])))
    app = await router(replica)
    async with openai_for(front(app)) as client:
        stream = await client.chat.completions.create(model="m", messages=SAY, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await replica.left()
