"""The answers as the vendors' own clients read them."""

import anthropic
import openai
import pytest

from loadgen.replicas import SimulatedFleet

FUNCTION = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}
TOOL = {"type": "function", "function": FUNCTION}
ARGUMENTS = '{"city":"warm","days":1}'
SAY = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def url():
    async with SimulatedFleet(1) as fleet:
        yield fleet.urls[0]


@pytest.fixture
async def client(url):
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as found:
        yield found


@pytest.fixture
async def claude(url):
    async with anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0) as found:
        yield found


async def test_chat(client):
    whole = await client.chat.completions.create(model="sim", messages=SAY, max_tokens=9)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 9
    stream = await client.chat.completions.create(
        model="sim",
        messages=SAY,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len(chunks) == 11
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-2].choices[0].finish_reason == "length"
    free = await client.chat.completions.create(model="sim", messages=SAY)
    assert free.choices[0].finish_reason == "stop"
    assert free.usage.completion_tokens == 128


async def test_chat_tool_call(client):
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, reason in (("required", "tool_calls"), (named, "stop")):
        asked = {"model": "sim", "messages": SAY, "tools": [TOOL], "tool_choice": choice}
        whole = await client.chat.completions.create(**asked, max_tokens=5)
        call = whole.choices[0].message.tool_calls[0].function
        assert (call.name, call.arguments) == ("weather", ARGUMENTS)
        assert whole.choices[0].finish_reason == reason
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [chunk.choices[0].delta async for chunk in stream]
        calls = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
        assert calls[0].name == "weather"
        assert "".join(call.arguments or "" for call in calls) == ARGUMENTS


async def test_completions(client):
    whole = await client.completions.create(model="sim", prompt="a", max_tokens=60, n=2)
    stream = await client.completions.create(
        model="sim", prompt="a", max_tokens=60, n=2, stream=True
    )
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0] != texts[1]
    assert len(texts[0]) == 240


async def test_streams_that_fall_behind_say_the_same():
    """Steps are over so fast that a write has the tokens of many, each its own event."""
    async with (
        SimulatedFleet(1, time_scale=1000.0) as fleet,
        openai.AsyncOpenAI(base_url=fleet.urls[0] + "/v1", api_key="x") as client,
        anthropic.AsyncAnthropic(base_url=fleet.urls[0], api_key="x") as claude,
    ):
        asked = {"model": "sim", "messages": SAY, "max_tokens": 500}
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in stream]
        assert len(texts) == 501
        assert "".join(texts) == whole.choices[0].message.content
        message = await claude.messages.create(**asked)
        async with claude.messages.stream(**asked) as events:
            texts = [part async for part in events.text_stream]
        assert len(texts) == 500
        assert "".join(texts) == message.content[0].text


async def test_responses(client):
    whole = await client.responses.create(model="sim", input="hello", max_output_tokens=5)
    assert whole.status == "incomplete"
    assert whole.usage.output_tokens == 5
    stream = await client.responses.create(
        model="sim", input="hello", max_output_tokens=5, stream=True
    )
    events = [event async for event in stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.usage.output_tokens == 5


async def test_responses_tool_call(client):
    tool = {"type": "function", "strict": False, **FUNCTION}
    asked = {"model": "sim", "input": "hello", "tools": [tool], "tool_choice": "required"}
    whole = await client.responses.create(**asked)
    assert whole.output[0].arguments == ARGUMENTS
    stream = await client.responses.create(**asked, stream=True)
    events = [event async for event in stream]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert done[0].arguments == ARGUMENTS
    assert events[-1].response.output[0].name == "weather"


async def test_messages(claude):
    asked = {"model": "sim", "messages": [{"role": "user", "content": "word " * 40}]}
    whole = await claude.messages.create(**asked, max_tokens=7)
    assert whole.stop_reason == "max_tokens"
    total = whole.usage.input_tokens
    assert whole.usage.cache_read_input_tokens == 0
    async with claude.messages.stream(**asked, max_tokens=7) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text
    assert final.usage.cache_read_input_tokens == 48
    assert final.usage.input_tokens == total - 48
    assert final.usage.output_tokens == 7


async def test_messages_tool_call(claude):
    tool = {"name": "weather", "input_schema": FUNCTION["parameters"]}
    asked = {"model": "sim", "messages": SAY, "max_tokens": 9, "tools": [tool]}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        whole = await claude.messages.create(**asked, tool_choice=choice)
        assert whole.stop_reason == "tool_use"
        assert whole.content[0].input == {"city": "warm", "days": 1}
        async with claude.messages.stream(**asked, tool_choice=choice) as stream:
            final = await stream.get_final_message()
        assert final.content[0].input == {"city": "warm", "days": 1}
