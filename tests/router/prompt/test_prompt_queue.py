"""What the queue needs of a body: its text, and what it says of its priority."""

from __future__ import annotations

import json

import pytest

from router.prompt import PARSERS
from router.prompt.spans import SPANS
from router.prompt.tail import digest, tail

BODIES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello " * 200}]},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": "hello " * 200}]},
    "/v1/responses": {"input": "hello " * 200},
    "/v1/completions": {"prompt": "hello " * 200},
}


def parsed(path: str, **fields: object):  # type: ignore[no-untyped-def]
    return PARSERS[path](json.dumps({"model": "m", **BODIES[path], **fields}).encode(), {})


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({}, None),
        ({"priority": 0}, None),
        ({"priority": 5}, 1),
        ({"priority": -5}, -1),
        ({"priority": "soon"}, None),
        ({"service_tier": "flex"}, 1),
        ({"service_tier": "priority"}, -1),
        ({"service_tier": "auto"}, None),
        ({"service_tier": None}, None),
        ({"nvext": {"agent_hints": {"priority": 3}}}, -1),
        ({"nvext": {"agent_hints": {"priority": -3}}}, 1),
        ({"nvext": {}}, None),
        ({"nvext": 7}, None),
    ],
)
def test_what_a_body_says_of_its_priority(
    path: str, fields: dict[str, object], priority: int | None
) -> None:
    assert parsed(path, **fields).priority == priority


@pytest.mark.parametrize("path", BODIES)
def test_the_end_of_a_prompt_names_it_with_its_chain(path: str) -> None:
    prompt = parsed(path)
    assert len(prompt.text) == prompt.size
    blocks = len(prompt.chain)
    length, hashed = tail(prompt.text, blocks)
    assert SPANS[blocks] + length == prompt.size
    assert digest(prompt.text, blocks, length) == hashed
    assert digest(prompt.text + b"more", blocks, length) == hashed
    assert digest(prompt.text, blocks, length + 1) == -1


def test_a_longer_chat_begins_with_the_whole_of_a_shorter_one() -> None:
    path = "/v1/chat/completions"
    messages = [
        {"role": "user", "content": "hello " * 200},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "more"},
    ]
    short, long = parsed(path, messages=messages[:1]), parsed(path, messages=messages)
    blocks = len(short.chain)
    length, hashed = tail(short.text, blocks)
    assert long.chain[blocks - 1] == short.chain[-1]
    assert digest(long.text, blocks, length) == hashed


def test_a_body_of_several_prompts_has_no_one_text() -> None:
    assert parsed("/v1/completions", prompt=["one", "two"]).text == b""
