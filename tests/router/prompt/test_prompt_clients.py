"""Bodies as the real openai and anthropic clients send them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import openai
import pytest

from router.prompt import PARSERS, Prompt

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

SYSTEM = "You are a careful assistant. " * 40
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a place. " * 30,
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


class Sent:
    """A server that keeps what the client sends and refuses it."""

    def __init__(self) -> None:
        self.path = ""
        self.body = b""
        sent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent.path = self.path
                sent.body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(400)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def parse(self) -> Prompt:
        return PARSERS[self.path](self.body)


@pytest.fixture
def sent() -> Iterator[Sent]:
    sent = Sent()
    thread = threading.Thread(target=sent.server.serve_forever, args=(0.01,))
    thread.start()
    yield sent
    sent.server.shutdown()
    thread.join()
    sent.server.server_close()


@pytest.fixture
def openai_client(sent: Sent) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="-", base_url=f"{sent.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(sent: Sent) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(api_key="-", base_url=sent.url, max_retries=0) as client:
        yield client


def ask(create: Any, **body: Any) -> None:
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
        create(**body)


def test_openai_chat(sent, openai_client):
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Wie ist das Wetter in Köln? 🌧"},
    ]
    create = openai_client.chat.completions.create
    ask(create, model="m", messages=messages, tools=[TOOL], max_completion_tokens=50, user="u1")
    first = sent.parse()
    assert (first.model, first.stream, first.key, first.output_limit) == ("m", False, "u1", 50)
    assert first.usage_offset == -1
    assert len(first.chain) > 4

    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain " * 200},
    ]
    ask(create, model="m", messages=messages, tools=[TOOL], stream=True, prompt_cache_key="s")
    second = sent.parse()
    assert second.chain[: len(first.chain)] == first.chain
    assert len(second.chain) > len(first.chain)
    assert (second.key, second.stream, second.output_limit) == ("s", True, 0)
    spliced = (
        sent.body[: second.usage_offset]
        + b'"stream_options":{"include_usage":true},'
        + sent.body[second.usage_offset :]
    )
    assert json.loads(spliced) == json.loads(sent.body) | {
        "stream_options": {"include_usage": True}
    }


def test_openai_chat_that_asks_for_usage_itself(sent, openai_client):
    ask(
        openai_client.chat.completions.create,
        model="m",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    assert sent.parse().usage_offset == -1


def test_openai_images_are_part_of_the_prefix(sent, openai_client):
    def image(url: str) -> Prompt:
        parts: list[Any] = [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        ask(
            openai_client.chat.completions.create,
            model="m",
            messages=[{"role": "user", "content": parts}],
        )
        return sent.parse()

    one = image("data:image/png;base64," + "iVBORw0K/" * 5000)
    assert image("data:image/png;base64," + "iVBORw0K/" * 5000) == one
    assert image("data:image/png;base64," + "iVBORw0K+" * 5000).chain[0] != one.chain[0]
    assert image("https://example.com/a.png").size == one.size, "a URL weighs what its image does"


def test_openai_completions(sent, openai_client):
    create = openai_client.completions.create
    ask(create, model="m", prompt="once upon a time " * 100, max_tokens=9, stream=True)
    text = sent.parse()
    assert (text.output_limit, text.usage_offset, text.size) == (9, 1, 1700)
    ask(create, model="m", prompt=["once upon a time " * 100, "another"])
    several = sent.parse()
    assert several.chain == text.chain
    assert several.size == text.size + len("another")
    ids = list(range(1000, 2000))
    ask(create, model="m", prompt=ids)
    tokens = sent.parse()
    ask(create, model="m", prompt=[ids, [7]])
    assert sent.parse().chain == tokens.chain
    ask(create, model="m", prompt=[*ids[:-1], 7])
    assert sent.parse().chain[:-1] == tokens.chain[:-1]


def test_openai_responses(sent, openai_client):
    create = openai_client.responses.create
    tool = {"type": "function", "name": "weather", "parameters": TOOL["function"]["parameters"]}
    common: dict[str, Any] = {"model": "m", "instructions": SYSTEM, "tools": [tool]}
    ask(create, **common, input="hi " * 100, prompt_cache_key="k", max_output_tokens=5, stream=True)
    first = sent.parse()
    assert (first.key, first.output_limit, first.stream, first.usage_offset) == ("k", 5, True, -1)
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi " * 100}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
            {"type": "reasoning_text", "text": "hm " * 100}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "weather",
         "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c", "output": "rain " * 100},
    ]  # fmt: skip
    ask(create, **common, input=items)
    second = sent.parse()
    assert second.chain[: len(first.chain)] == first.chain
    for item in items:
        item.pop("id", None)
        item.pop("status", None)
    ask(create, **common, input=items)
    assert sent.parse().chain == second.chain, "ids and states are not in the prompt"


def test_anthropic_messages(sent, anthropic_client):
    create = anthropic_client.messages.create
    tool = {"name": "weather", "description": "d" * 600, "input_schema": {"type": "object"}}
    common: dict[str, Any] = {"model": "m", "max_tokens": 64, "tools": [tool]}
    ask(
        create,
        **common,
        system=SYSTEM,
        messages=[{"role": "user", "content": "hi " * 200}],
        metadata={"user_id": "u9"},
    )
    first = sent.parse()
    assert (first.key, first.output_limit, first.usage_offset) == ("u9", 64, -1)

    # The next step of an agent: the cache marks have moved, and text has become blocks.
    mark = {"type": "ephemeral"}
    ask(
        create,
        **{**common, "tools": [tool | {"cache_control": mark}]},
        system=[{"type": "text", "text": SYSTEM, "cache_control": mark}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "hi " * 200}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"place": "Köln"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "rain " * 200}],
                        "cache_control": mark,
                    }
                ],
            },
        ],
        stream=True,
    )
    second = sent.parse()
    assert second.stream
    assert second.chain[: len(first.chain)] == first.chain
    assert len(second.chain) > len(first.chain) + 2
