"""Why a prompt missed, told in the vendors' own fields, headers, log and explanations."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
import pytest
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    ScriptedReplica,
    chunk,
    post,
    sized,
    unchunked,
    until,
)

from router.app import App

MESSAGES, RESPONSES, CHAT = "/v1/messages", "/v1/responses", "/v1/chat/completions"
SYSTEM = "You are careful. " * 100
SAID = "hello there, look at this " * 40


def message(name: str, tokens: int = 600, cached: int = 0) -> dict[str, Any]:
    usage = {
        "input_tokens": tokens - cached,
        "output_tokens": 3,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": "a } here"}],
        "model": "m",
        "stop_reason": "end_turn",
        "usage": usage,
    }


def response(name: str, tokens: int = 600, cached: int = 0) -> dict[str, Any]:
    return {
        "id": name,
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "prompt_cache_diagnostics": None,
        "usage": {
            "input_tokens": tokens,
            "output_tokens": 3,
            "total_tokens": tokens + 3,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }


def events(*found: dict[str, Any]) -> list[bytes]:
    return [
        b"event: %b\ndata: %b\n\n" % (each["type"].encode(), json.dumps(each).encode())
        for each in found
    ]


def message_events(name: str, cached: int = 0) -> list[bytes]:
    start = message(name, cached=cached)
    start["content"] = []
    delta = {"type": "content_block_delta", "index": 0}
    return events(
        {"type": "message_start", "message": start},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {**delta, "delta": {"type": "text_delta", "text": 'a "message": { } here'}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": start["usage"],
        },
        {"type": "message_stop"},
    )


def response_events(name: str, cached: int = 0) -> list[bytes]:
    begun = {**response(name), "status": "in_progress", "usage": None}
    return events(
        {"type": "response.created", "sequence_number": 0, "response": begun},
        {
            "type": "response.output_text.delta",
            "sequence_number": 1,
            "item_id": "i",
            "output_index": 0,
            "content_index": 0,
            "logprobs": [],
            "delta": "hi",
        },
        {
            "type": "response.completed",
            "sequence_number": 2,
            "response": response(name, cached=cached),
        },
    )


def streams(replica: ScriptedReplica, found: list[bytes]) -> None:
    replica.reply(SSE_HEAD, *map(chunk, found), END)


async def told(app: App, name: str) -> Any:
    """What /explain knows of the latest request's cache, once it is over."""
    await until(lambda: app.explain.find(name) is not None)
    found = app.explain.find(name)
    assert found is not None
    return found.cache


@pytest.fixture
async def world(replicas: MakeReplica, router: MakeRouter) -> tuple[ScriptedReplica, App]:
    replica = await replicas()
    return replica, await router(replica, policy="cache_aware", explain_headers=True)


def claude(app: App) -> anthropic.AsyncAnthropic:
    url = f"http://127.0.0.1:{app.port}"
    return anthropic.AsyncAnthropic(base_url=url, api_key="x", max_retries=0)


def client(app: App) -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{app.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0)


def ask(system: str = SYSTEM, previous: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "max_tokens": 9,
        "system": system,
        "messages": [{"role": "user", "content": SAID}],
        "diagnostics": {"previous_message_id": previous},
        **more,
    }


async def test_anthropics_client_is_told_what_changed(world: tuple[ScriptedReplica, App]) -> None:
    replica, app = world
    async with claude(app) as api:
        replica.reply(sized(json.dumps(message("msg_1")).encode()))
        first = await api.messages.create(**ask())
        assert first.diagnostics is None
        replica.reply(sized(json.dumps(message("msg_2", cached=592)).encode()))
        second = await api.messages.create(**ask(previous="msg_1"))
        assert second.diagnostics is None
        replica.reply(sized(json.dumps(message("msg_3", cached=176)).encode()))
        changed = SYSTEM[:800] + "now 12:04:59 " + SYSTEM[800:]
        third = await api.messages.create(**ask(changed, previous="msg_1"))
        assert third.diagnostics is not None
        reason = third.diagnostics.cache_miss_reason
        assert isinstance(reason, anthropic.types.CacheMissSystemChanged)
        # 600 tokens were to be had, in blocks of 16, of which the engine delivered 176.
        assert reason.cache_missed_input_tokens == 592 - 176
        fourth = await api.messages.create(**ask(previous="msg_unknown"))
        assert fourth.diagnostics is not None
        reason = fourth.diagnostics.cache_miss_reason
        assert reason is not None
        assert reason.type == "previous_message_not_found"


async def test_what_did_not_ask_gets_the_answers_bytes(
    world: tuple[ScriptedReplica, App], connect: Connect
) -> None:
    replica, app = world
    raw = await connect(app)
    whole = json.dumps(message("msg_1"), indent=1).encode()
    replica.reply(sized(whole))
    body = ask()
    del body["diagnostics"]
    _, _, got = await raw.ask(post(MESSAGES, json.dumps(body).encode()))
    assert got == whole
    # And where it asked, all else is as it was.
    _, _, got = await raw.ask(post(MESSAGES, json.dumps(ask()).encode()))
    assert got == whole[:-1] + b',"diagnostics":null}'


@pytest.mark.parametrize("pieces", [1, 3, 50])
async def test_a_length_that_is_told_in_time(
    world: tuple[ScriptedReplica, App], connect: Connect, pieces: int
) -> None:
    """However an answer's head and body come."""
    replica, app = world
    raw = await connect(app)
    whole = sized(json.dumps(message("msg_1")).encode())
    head, _, body = whole.partition(b"\r\n\r\n")
    size = -(-len(body) // pieces)
    replica.reply_in_steps(
        head + b"\r\n\r\n", *(body[at : at + size] for at in range(0, len(body), size))
    )
    raw.send(post(MESSAGES, json.dumps(ask()).encode()))
    for _ in range(pieces):
        replica.step()
    status, headers, got = await raw.answer()
    assert (status, int(headers["content-length"])) == (200, len(got))
    assert json.loads(got) == {**message("msg_1"), "diagnostics": None}


@pytest.mark.parametrize("together", [True, False])
async def test_streams_of_messages(world: tuple[ScriptedReplica, App], together: bool) -> None:
    replica, app = world
    async with claude(app) as api:
        for name, system in (("msg_1", SYSTEM), ("msg_2", SYSTEM[5:] + SYSTEM[:5])):
            found = message_events(name)
            streams(replica, [b"".join(found)] if together else found)
            previous = "msg_1" if name == "msg_2" else None
            async with api.messages.stream(**ask(system, previous)) as stream:
                text = "".join([part async for part in stream.text_stream])
                final = await stream.get_final_message()
            assert text == 'a "message": { } here'
        assert final.diagnostics is not None
        reason = final.diagnostics.cache_miss_reason
        assert reason is not None
        assert reason.type == "system_changed"


async def test_streams_are_else_byte_for_byte(
    world: tuple[ScriptedReplica, App], connect: Connect
) -> None:
    replica, app = world
    raw = await connect(app)
    found = message_events("msg_1")
    streams(replica, found)
    _, _, got = await raw.ask(post(MESSAGES, json.dumps(ask(stream=True)).encode()))
    content = unchunked(got)
    assert content.replace(b',"diagnostics":null', b"") == b"".join(found)
    assert content.count(b'"diagnostics":null') == 1
    # Torn apart anywhere, it comes out the same.
    whole = b"".join(map(chunk, found)) + END
    replica.reply(SSE_HEAD, *(whole[at : at + 7] for at in range(0, len(whole), 7)))
    _, _, got = await raw.ask(post(MESSAGES, json.dumps(ask(stream=True)).encode()))
    assert unchunked(got) == content


def items(*said: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "instructions": SYSTEM,
        "input": [{"type": "message", "role": "user", "content": each} for each in said],
        **more,
    }


def compare(name: str) -> dict[str, Any]:
    return {"prompt_cache_options": {"comparison_response_id": name}}


async def test_openais_client_is_told_what_changed(world: tuple[ScriptedReplica, App]) -> None:
    replica, app = world
    tool: Any = {"type": "function", "name": "t", "parameters": {"type": "object"}, "strict": None}
    async with client(app) as api:
        replica.reply(sized(json.dumps(response("resp_1")).encode()))
        await api.responses.create(**items(SAID))
        cases: list[tuple[Any, str]] = [
            (items(SAID, "go on", **compare("resp_1")), "cache_hit"),
            (items("no " + SAID, **compare("resp_1")), "input_changed"),
            (items(SAID, tools=[tool], **compare("resp_1")), "tools_changed"),
            (items(SAID, **compare("resp_0")), "comparison_response_not_found"),
        ]
        for body, expected in cases:
            replica.reply(sized(json.dumps(response("resp_2", 700, 16)).encode()))
            whole = await api.responses.create(**body)
            streams(replica, response_events("resp_3", 16))
            stream = await api.responses.create(**body, stream=True)
            last = [each async for each in stream][-1]
            assert isinstance(last, openai.types.responses.ResponseCompletedEvent)
            for answer in (whole, last.response):
                found = answer.prompt_cache_diagnostics
                assert found is not None
                assert expected in (found.type, getattr(found, "reason", ""))


async def test_headers_log_and_explanation(
    world: tuple[ScriptedReplica, App], connect: Connect
) -> None:
    replica, app = world
    raw = await connect(app)
    usage = {
        "prompt_tokens": 600,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    replica.reply(sized(json.dumps({"id": "c", "choices": [], "usage": usage}).encode()))

    async def chat(name: str, system: str) -> dict[str, str]:
        said = [{"role": "system", "content": system}, {"role": "user", "content": SAID}]
        body = json.dumps({"model": "m", "messages": said}).encode()
        asked = ("X-Session-Id: s", "X-Warmroute-Explain: 1", f"X-Request-Id: {name}")
        _, headers, _ = await raw.ask(post(CHAT, body, *asked))
        return headers

    headers = await chat("r1", SYSTEM)
    assert headers["x-warmroute-miss-reason"] == "never_computed"
    assert (await told(app, "r1")).reason == "never_computed"
    headers = await chat("r2", "At 10:31:07. " + SYSTEM)
    assert headers["x-warmroute-miss-reason"] == "system_changed"
    assert headers["x-warmroute-missed-tokens"] == "592"
    assert headers["x-warmroute-changed"].startswith("system; place=")
    cache = await told(app, "r2")
    assert (cache.reason, cache.missed_tokens, cache.changed_part) == (
        "system_changed",
        592,
        "system",
    )
    assert cache.lost == {"system_changed": 592}
    # The engine delivered nothing of a prompt that was sent before: that is nobody's change.
    await chat("r3", "At 10:31:07. " + SYSTEM)
    cache = await told(app, "r3")
    assert (cache.reason, cache.changed_part) == ("evicted", "")
    assert app.diagnoser is not None
    assert app.diagnoser.requests["system_changed"] == 1
    assert app.diagnoser.tokens["evicted"] == cache.missed_tokens > 500


async def test_switched_off_it_does_nothing(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, policy="cache_aware", diagnosis=False)
    raw = await connect(app)
    whole = json.dumps(message("msg_1")).encode()
    replica.reply(sized(whole))
    _, _, got = await raw.ask(post(MESSAGES, json.dumps(ask()).encode(), "X-Request-Id: r1"))
    assert got == whole
    assert app.diagnoser is None
    assert await told(app, "r1") is None
