"""The usual causes of misses, on real engines: each gets the finding that the docs name, and what is
told to be missed is what the engine did not deliver.

With ``-s`` it prints the table of docs/operate/why-did-my-cache-miss.md.
"""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest
from caught_up import PATIENT

from bench.gateways import PATIENCE_SECONDS, Gateway, gateway
from bench.vllm import empty

WORDS = re.findall(
    r"\w+",
    "file test module returns value error open parse request server cache prefix block session "
    "result list line function class path build run check fix patch apply",
)
BLOCK = 32
STAMP = "Current time: 2026-11-29T14:{minute:02}:31Z. "


def say(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


class Loop:
    """An agent that asks, is answered, calls a tool, and sends what it said."""

    def __init__(self, engine: httpx.AsyncClient, rng: random.Random) -> None:
        self.engine = engine
        self.rng = rng
        self.system = say(rng, 400)
        self.tools = [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": say(rng, 30),
                    "parameters": {"type": "object", "properties": {}},
                },
            }
            for name in ("bash", "edit", "read")
        ]
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": say(rng, 60)}]
        self.more: dict[str, Any] = {}
        self.model = "tiny"
        self.used: list[tuple[int, int]] = []
        """(prompt tokens, cached tokens) as the engine told them."""

    async def ask(self) -> None:
        system = {"role": "system", "content": self.system}
        body = {
            "model": self.model,
            "max_tokens": 4,
            "messages": [system, *self.messages],
            "tools": self.tools,
            **self.more,
        }
        answer = await self.engine.post("/v1/chat/completions", json=copy.deepcopy(body))
        assert answer.status_code == 200, answer.text
        usage = answer.json()["usage"]
        details = usage["prompt_tokens_details"]
        self.used.append((usage["prompt_tokens"], details["cached_tokens"]))

    def step(self) -> None:
        number = len(self.messages)
        call = {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "bash", "arguments": '{"command": "ls"}'},
        }
        said = {"role": "assistant", "content": say(self.rng, 8), "tool_calls": [call]}
        result = {
            "role": "tool",
            "tool_call_id": f"call_{number}",
            "content": say(self.rng, 60),
        }
        self.messages += [said, result]


def time_stamp(loop: Loop, number: int) -> None:
    start = loop.system.rpartition("Z. ")[2]
    loop.system = STAMP.format(minute=number) + start


def nonce(loop: Loop, number: int) -> None:
    start = loop.system.rpartition("; ")[2]
    loop.system = f"build=7f{loop.rng.getrandbits(28):07x}; " + start


def reordered(loop: Loop, number: int) -> None:
    by_name = sorted(loop.tools, key=lambda tool: tool["function"]["name"])
    loop.tools = list(list(itertools.permutations(by_name))[number])


def tools_left_out(loop: Loop, number: int) -> None:
    if number == 3:
        loop.tools = loop.tools[:1]


def salted(loop: Loop, number: int) -> None:
    loop.more["cache_salt"] = f"user {number}"


def reminded(loop: Loop, number: int) -> None:
    task = loop.messages[0]["content"].rpartition("of 9. ")[2]
    loop.messages[0] = {"role": "user", "content": f"Step {number} of 9. {task}"}


def elided(loop: Loop, number: int) -> None:
    if number == 3:
        loop.messages[2] = {**loop.messages[2], "content": "[left out]"}


def compacted(loop: Loop, number: int) -> None:
    if number == 3:
        loop.messages = [
            {
                "role": "user",
                "content": "The conversation up to now in summary: " + say(loop.rng, 30),
            }
        ]


def helper(loop: Loop, number: int) -> None:
    if number == 3:
        other = Loop(loop.engine, loop.rng)
        loop.system, loop.messages = other.system, other.messages


def nothing(loop: Loop, number: int) -> None:
    pass


Cause = Callable[[Loop, int], None]
CAUSES: list[tuple[Cause, tuple[str, str, str]]] = [
    (time_stamp, ("volatile_prefix", "system", "time stamp")),
    (nonce, ("volatile_prefix", "system", "nonce")),
    (reordered, ("volatile_prefix", "tools", "reordered tools")),
    (tools_left_out, ("tools_changed", "tools", "text")),
    (salted, ("salted_apart", "salt", "")),
    (reminded, ("volatile_prefix", "message 1", "counter")),
    (elided, ("messages_changed", "later messages (tool result)", "text")),
    (compacted, ("context_compacted", "message 1", "a summary")),
]


async def found(started: Gateway, agent: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=started.admin, timeout=PATIENCE_SECONDS) as admin:
        audit = (await admin.get("/audit")).json()
    return [each for each in audit["findings"] if each["agent"] == agent]


async def steps(started: Gateway, agent: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(base_url=started.admin, timeout=PATIENCE_SECONDS) as admin:
        listed = (await admin.get("/sessions")).json()["sessions"]
        name = next(each["id"] for each in listed if each["agent"] == agent)
        requests: list[dict[str, Any]] = (await admin.get(f"/sessions/{name}")).json()["requests"]
        return requests


async def run(urls: list[str], started: Gateway, agent: str, change: Cause) -> Loop:
    await empty(urls)
    headers = {"user-agent": f"{agent}/1.0"}
    async with httpx.AsyncClient(
        base_url=started.url, headers=headers, timeout=PATIENCE_SECONDS
    ) as client:
        loop = Loop(client, random.Random(agent))
        for number in range(4):
            change(loop, number)
            await loop.ask()
            loop.step()
    return loop


@pytest.mark.parametrize(
    ("change", "expected"), CAUSES, ids=lambda each: getattr(each, "__name__", "")
)
async def test_each_cause_gets_its_finding(
    urls: list[str], change: Cause, expected: tuple[str, str, str]
) -> None:
    agent = "agent-" + change.__name__.replace("_", "-")
    async with gateway(urls, *PATIENT) as started:
        loop = await run(urls, started, agent, change)
        findings = await found(started, agent)
        told = await steps(started, agent)
    first = findings[0]
    print(
        "|",
        " | ".join(
            str(first[key])
            for key in ("kind", "part", "looks_like", "requests", "tokens_lost", "mend")
        ),
        "|",
        loop.used,
    )
    kind, part, looks = expected
    assert (first["kind"], first["part"]) == (kind, part)
    assert first["looks_like"] == looks
    # What an engine had of the step before, in whole blocks, less what it delivered.
    missed = 0
    for (before, _), (tokens, cached) in zip(loop.used, loop.used[1:], strict=False):
        missed += max(0, min(before, tokens) // BLOCK * BLOCK - cached)
    assert abs(sum(each["tokens_lost"] for each in findings) - missed) <= BLOCK * len(told)


async def test_what_only_grows_has_no_finding(urls: list[str]) -> None:
    async with gateway(urls, *PATIENT) as started:
        loop = await run(urls, started, "agent-steady", nothing)
        assert await found(started, "agent-steady") == []
        told = await steps(started, "agent-steady")
    assert [each["reason"] for each in told] == ["never_computed", "hit", "hit", "hit"]
    assert all(cached > 0 for _, cached in loop.used[1:])


async def test_a_helper_is_no_change(urls: list[str]) -> None:
    async with gateway(urls, *PATIENT) as started:
        await run(urls, started, "agent-helper", helper)
        assert await found(started, "agent-helper") == []


async def test_the_vendors_clients_are_told(urls: list[str]) -> None:
    """The fields of Anthropic's and OpenAI's APIs, in JSON and in streams, of what engines answer."""
    await empty(urls)
    rng = random.Random(5)
    rules, task = say(rng, 300), say(rng, 50)
    changed = rules[:900] + "at 14:31:07 " + rules[900:]
    async with gateway(urls, *PATIENT) as started:
        claude = anthropic.AsyncAnthropic(base_url=started.url, api_key="x", max_retries=0)
        asked: Any = {
            "model": "tiny",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": task}],
        }
        first = await claude.messages.create(
            **asked, system=rules, diagnostics={"previous_message_id": None}
        )
        assert first.diagnostics is None
        previous: Any = {"previous_message_id": first.id}
        again = await claude.messages.create(**asked, system=rules, diagnostics=previous)
        assert again.diagnostics is None
        other = await claude.messages.create(**asked, system=changed, diagnostics=previous)
        async with claude.messages.stream(
            **asked, system="Other. " + rules, diagnostics=previous
        ) as stream:
            streamed = await stream.get_final_message()
        for answer in (other, streamed):
            assert answer.diagnostics is not None
            reason = answer.diagnostics.cache_miss_reason
            assert isinstance(reason, anthropic.types.CacheMissSystemChanged)
            used = first.usage
            had = used.input_tokens + (used.cache_creation_input_tokens or 0)
            had += used.cache_read_input_tokens or 0
            missed = had // BLOCK * BLOCK - (answer.usage.cache_read_input_tokens or 0)
            assert abs(reason.cache_missed_input_tokens - missed) <= BLOCK
        gpt = openai.AsyncOpenAI(base_url=started.url + "/v1", api_key="x", max_retries=0)
        body: Any = {"model": "tiny", "max_output_tokens": 4, "instructions": rules}
        whole = await gpt.responses.create(**body, input=task)
        options: Any = {"prompt_cache_options": {"comparison_response_id": whole.id}}
        same = await gpt.responses.create(**body, input=task, **options)
        events = [
            event
            async for event in await gpt.responses.create(
                **body, input="no " + task, **options, stream=True
            )
        ]
    assert same.prompt_cache_diagnostics is not None
    assert same.prompt_cache_diagnostics.type == "cache_hit"
    last = events[-1]
    assert isinstance(
        last,
        openai.types.responses.ResponseCompletedEvent
        | openai.types.responses.ResponseIncompleteEvent,
    )
    told = last.response.prompt_cache_diagnostics
    assert told is not None
    assert told.type == "cache_miss"
    assert told.reason == "input_changed"
