"""Every API, asked and read over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from loadgen.client.body import BodyMaker
from loadgen.client.driver import Driver
from loadgen.client.formats import FORMATS
from loadgen.client.target import Target
from loadgen.replicas import SimulatedFleet
from loadgen.results.records import Records
from loadgen.workloads import Closed, Plan, Role, Segment, Session, Step, Traced, make
from loadgen.workloads.content import Conversation, Message, Tool, ToolCall, Verbatim

GENERATING = [name for name in FORMATS if name != "embeddings"]
URL = "data:image/png;base64,aGVsbG8="
CALL = ToolCall("c1", "look", '{"at": "a\\"b"}')
TALK = Conversation(
    (
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, 'What is "this"?\n', images=(URL,)),
        Message(Role.ASSISTANT, "I look.", calls=(CALL,)),
        Message(Role.TOOL, "a cat", call_id="c1"),
        Message(Role.USER, "So?"),
    ),
    (Tool("look", "Looks.", b'{"type":"object","properties":{}}'),),
)
PROMPT = (Segment(1, 40),)


class Given:
    """Sessions as a test gives them."""

    name, timed, group = "given", True, 1

    def __init__(self, *steps: Step) -> None:
        self._steps = steps

    def sessions(self, seed: int) -> Iterator[Session]:
        return iter([Session(0, self._steps)])


def step(content: Any, tokens: int = 5) -> Step:
    return Step(PROMPT, Segment(2, tokens, Role.ASSISTANT), content=content)


async def play(url: str, workload: Any, api: str, *, stream: bool, **plan: Any) -> Records:
    maker = BodyMaker("sim", api, stream=stream)
    arrivals = Traced() if workload.timed else Closed(2)
    driver = Driver(Plan(workload, arrivals, **plan), [Target(url, maker.api.path)], maker)
    return await asyncio.wait_for(driver.run(), 30)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", GENERATING)
async def test_agents_through_every_api(api: str, stream: bool) -> None:
    small = {"tool_tokens": "40", "system_tokens": "100", "output_tokens": "9", "tool_pause": "0"}
    small |= {"resume_pause": "0", "steps": "4", "result_tokens": "60"}
    async with SimulatedFleet(1) as fleet:
        records = await play(
            fleet.urls[0], make("agent", small), api, stream=stream, requests=20, finish=True
        )
    assert set(records.reason) == {0}, records.reasons.names
    assert min(records.output_tokens) > 0
    assert sum(records.cached_tokens) > 0.3 * sum(records.prompt_tokens)
    for scheduled, first, end in zip(records.scheduled, records.first, records.end, strict=True):
        assert scheduled <= first <= end


@pytest.mark.parametrize("api", GENERATING)
async def test_recorded_talk_through_every_api(api: str) -> None:
    async with SimulatedFleet(1) as fleet:
        records = await play(fleet.urls[0], Given(step(TALK)), api, stream=True)
        asked = fleet.replicas[0].requests[-1].json()
    assert list(records.reason) == [0], records.reasons.names
    assert list(records.output_tokens) == [5]
    words = json.dumps(asked)
    for said in ("Be brief.", "I look.", "a cat", "So?"):
        assert said in words
    if api != "completions":
        assert "aGVsbG8=" in words
        assert "look" in [tool.get("name") or tool["function"]["name"] for tool in asked["tools"]]


def body(api: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(BodyMaker("m", api).body(step(TALK), {}))
    return made


def test_a_chat_body_of_recorded_talk() -> None:
    system, user, assistant, tool, last = body("chat")["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"] == [
        {"type": "text", "text": 'What is "this"?\n'},
        {"type": "image_url", "image_url": {"url": URL}},
    ]
    (call,) = assistant["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": CALL.arguments}
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "a cat"}
    assert last["content"] == "So?"


def test_a_messages_body_of_recorded_talk() -> None:
    made = body("messages")
    assert made["system"] == "Be brief."
    user, assistant, last = made["messages"]
    image = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
    assert user["content"][1] == {"type": "image", "source": image}
    assert assistant["content"][1]["input"] == {"at": 'a"b'}
    assert last["role"] == "user"
    assert [block["type"] for block in last["content"]] == ["tool_result", "text"]
    assert made["tools"][0]["input_schema"] == {"type": "object", "properties": {}}
    assert made["max_tokens"] == 5


def test_a_responses_body_of_recorded_talk() -> None:
    made = body("responses")
    kinds = [item["type"] for item in made["input"]]
    assert kinds == ["message"] * 3 + ["function_call", "function_call_output", "message"]
    assert made["input"][3]["call_id"] == made["input"][4]["call_id"] == "c1"
    assert made["input"][1]["content"][1] == {"type": "input_image", "image_url": URL}
    assert (made["store"], made["max_output_tokens"]) == (False, 5)


async def test_recorded_bodies_go_to_their_own_api_as_they_are() -> None:
    recorded = {"model": "gpt", "messages": [{"role": "user", "content": "A"}], "top_p": 0.5}
    chat = step(Verbatim("/v1/chat/completions", json.dumps(recorded).encode()))
    text = step(Verbatim("/v1/completions", b'{"prompt":"B","max_tokens":3,"stream":false}'))
    async with SimulatedFleet(1) as fleet:
        records = await play(fleet.urls[0], Given(chat, text), "chat", stream=True)
        one, other = (seen.json() for seen in fleet.replicas[0].requests)
        paths = [seen.path for seen in fleet.replicas[0].requests]
    assert list(records.reason) == [0, 0], records.reasons.names
    assert sorted(records.output_tokens) == [3, 5]
    assert paths == ["/v1/chat/completions", "/v1/completions"]
    assert one["messages"] == recorded["messages"]
    assert (one["model"], one["top_p"], one["max_tokens"], one["stream"]) == ("sim", 0.5, 5, True)
    assert (other["prompt"], other["max_tokens"]) == ("B", 3)


async def test_what_was_answered_stands_where_the_recording_has_no_text(wire: Any) -> None:
    async def answer(seen: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.stream(wire.token('really "so"', "stop"), wire.usage(9, 0, 2), wire.DONE))

    first = Step(PROMPT, Segment(77, 5), content=Conversation((Message(Role.USER, "A"),)))
    after = (Message(Role.USER, "A"), Message(Role.ASSISTANT, answer=77), Message(Role.USER, "B"))
    second = Step(PROMPT, Segment(78, 5), (0,), content=Conversation(after))
    async with wire.raw_server(answer) as server:
        await play(server.url, Given(first, second), "chat", stream=True)
    assert server.seen[1].body["messages"][1]["content"] == 'really "so"'


async def test_embeddings(wire: Any) -> None:
    async def answer(seen: Any, writer: asyncio.StreamWriter) -> None:
        told = json.dumps(
            {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
        ).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % len(told) + told)

    async with wire.raw_server(answer) as server:
        records = await play(server.url, Given(step(TALK)), "embeddings", stream=True)
    (seen,) = server.seen
    assert seen.line.startswith("POST /v1/embeddings ")
    assert set(seen.body) == {"model", "input"}
    assert (list(records.reason), list(records.prompt_tokens)) == ([0], [8])
    assert list(records.output_tokens) == [0]


@pytest.mark.parametrize(
    ("api", "data", "reason"),
    [
        ("responses", {"type": "response.failed", "response": {}}, "error in stream"),
        ("messages", {"type": "error", "error": {"message": "full"}}, "error in stream"),
        ("messages", {"type": "content_block_delta", "delta": {"text": "a"}}, "cut off"),
        ("responses", {"type": "response.output_text.delta", "delta": "a"}, "cut off"),
    ],
)
async def test_answers_that_are_not_whole_say_why(
    wire: Any, api: str, data: dict[str, Any], reason: str
) -> None:
    async def answer(seen: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.stream(wire.event(**data)))

    async with wire.raw_server(answer) as server:
        records = await play(server.url, Given(step(TALK)), api, stream=True)
    assert records.reasons.names == ["", reason]
