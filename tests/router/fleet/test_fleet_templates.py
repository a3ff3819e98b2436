"""What is found out of a chat template, and that prompts read with it share what the engine does."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from chat_templates import TemplateEngine, render, render_messages

from router.fleet.fleet import Fleet
from router.prompt import PARSERS
from router.prompt.spans import SPANS
from router.render.errors import UnrenderedError
from router.types import Inline, Reasoning, TemplateTraits, ToolsPlace

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@pytest.fixture
def asked(closing, fleet):
    """A fleet of one engine with a template, once it has been asked."""

    async def start(template: str, *names: str, **fields: Any) -> tuple[Fleet, TemplateEngine]:
        engine = await TemplateEngine(template, *names, **fields).start()
        closing.push_async_callback(engine.stop)
        made = await fleet(engine.url, models_interval=60.0)
        return made, engine

    return start


TRAITS = {
    "qwen3": (ToolsPlace.AFTER_SYSTEM, Inline.KEPT, False, Reasoning.TURN),
    "qwen3.5": (ToolsPlace.FIRST, Inline.KEPT, True, Reasoning.TURN),
    "qwen2.5": (ToolsPlace.AFTER_SYSTEM, Inline.KEPT, False, Reasoning.NEVER),
    "glm": (ToolsPlace.FIRST, Inline.KEPT, False, Reasoning.TURN),
    "gpt-oss": (ToolsPlace.AFTER_SYSTEM, Inline.KEPT, False, Reasoning.ANSWER),
    "mistral": (ToolsPlace.LAST_USER, Inline.KEPT, False, Reasoning.KEPT),
    "deepseek": (ToolsPlace.AFTER_SYSTEM, Inline.MOVED, False, Reasoning.NEVER),
    "gemma": (ToolsPlace.NOWHERE, Inline.KEPT, True, Reasoning.NEVER),
}


@pytest.mark.parametrize("template", TRAITS)
async def test_the_order_is_found_out(asked, template):
    fleet, _ = await asked(template)
    found = fleet.templates.models["m"]
    assert found.known
    assert (found.tools, found.system, found.merges_system, found.reasoning) == TRAITS[template]
    knows = Inline.KEPT if template == "gpt-oss" else Inline.MOVED
    if template != "gemma":
        assert found.developer is knows


async def test_what_arguments_do_is_found_out(asked):
    effects = (await asked("gpt-oss"))[0].templates.models["m"].arguments
    low, high = effects[b'reasoning_effort="low"'], effects[b'reasoning_effort="high"']
    assert low.head
    assert high.head
    assert low.head != high.head
    assert not effects[b'reasoning_effort="medium"'].head, "it says what is said without it"
    assert not effects[b"kwargs:enable_thinking=false"].head

    effects = (await asked("qwen3"))[0].templates.models["m"].arguments
    assert not any(effect.head or effect.reasoning for effect in effects.values())

    effects = (await asked("glm"))[0].templates.models["m"].arguments
    assert effects[b"kwargs:clear_thinking=false"].reasoning is Reasoning.KEPT
    assert effects[b"kwargs:clear_thinking=true"].reasoning is None


# Two prompts after each other: what the chain says they share against what the template renders.

_rng = random.Random(5)
_WORDS = [
    "gateway",
    "replica",
    "prefix",
    "cache",
    "block",
    "token",
    "agent",
    "tool",
    "answer",
    "stream",
    "route",
    "load",
]


def words(count: int) -> str:
    return " ".join(_rng.choice(_WORDS) + str(_rng.randrange(100)) for _ in range(count))


SYSTEM = words(900)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": f"tool{n}",
            "description": words(60),
            "parameters": {"type": "object"},
        },
    }
    for n in range(9)
]
STEPS = [(words(80), words(100)) for _ in range(8)]
QUESTION = words(60)


def chat(steps: int, *, tools: int = 9, behind: str = "", role: str = "", **more: Any) -> Any:
    messages: list[Any] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
    ]
    for n, (thought, result) in enumerate(STEPS[:steps]):
        function = {"name": "tool1", "arguments": json.dumps({"n": n})}
        call = {"id": f"call{n:05}", "type": "function", "function": function}
        messages.append(
            {"role": "assistant", "content": "", "reasoning": thought, "tool_calls": [call]}
        )
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        if role:
            messages.append({"role": role, "content": f"{900 - n} tokens left. " * 4})
    if behind:
        messages.append({"role": "user", "content": behind})
    return {"model": "m", "messages": messages, "tools": TOOLS[:tools], **more}


def claude(steps: int, *, inline: bool = False, behind: str = "", **more: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for n, (thought, result) in enumerate(STEPS[:steps]):
        messages += [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": thought, "signature": "s"},
                    {"type": "tool_use", "id": f"call{n:05}", "name": "tool1", "input": {"n": n}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": f"call{n:05}", "content": result}
                ],
            },
        ]
        if inline:
            messages.append({"role": "system", "content": f"{900 - n} tokens left. " * 4})
    if behind:
        messages[-1]["content"].append({"type": "text", "text": behind})
    tools = [
        {
            "name": tool["function"]["name"],
            "description": tool["function"]["description"],
            "input_schema": {"type": "object"},
        }
        for tool in TOOLS
    ]
    return {
        "model": "m",
        "max_tokens": 9,
        "system": SYSTEM,
        "tools": tools,
        "messages": messages,
    } | (more)


PAIRS: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
    "the next step": (CHAT, lambda: chat(6), lambda: chat(7)),
    "a new question": (CHAT, lambda: chat(6), lambda: chat(6, behind="And now?")),
    "fewer tools": (CHAT, lambda: chat(2), lambda: chat(2, tools=3)),
    "another effort": (CHAT, lambda: chat(6), lambda: chat(7, reasoning_effort="low")),
    "thinking off": (
        CHAT,
        lambda: chat(6),
        lambda: chat(7, chat_template_kwargs={"enable_thinking": False}),
    ),
    "thinking kept": (
        CHAT,
        lambda: chat(6, chat_template_kwargs={"clear_thinking": False}),
        lambda: chat(6, behind="And now?", chat_template_kwargs={"clear_thinking": False}),
    ),
    "inline system": (CHAT, lambda: chat(6, role="system"), lambda: chat(7, role="system")),
    "inline developer": (
        CHAT,
        lambda: chat(6, role="developer"),
        lambda: chat(7, role="developer"),
    ),
    "claude: the next step": (
        MESSAGES,
        lambda: claude(6, thinking={"type": "adaptive"}),
        lambda: claude(7, thinking={"type": "enabled", "budget_tokens": 9}),
    ),
    "claude: thinking disabled": (
        MESSAGES,
        lambda: claude(6),
        lambda: claude(7, thinking={"type": "disabled"}),
    ),
    "claude: inline system": (
        MESSAGES,
        lambda: claude(6, inline=True),
        lambda: claude(7, inline=True),
    ),
    "claude: a reminder": (MESSAGES, lambda: claude(6), lambda: claude(7, behind="Remember.")),
}


def common(one: Any, other: Any) -> int:
    least = min(len(one), len(other))
    return next((n for n in range(least) if one[n] != other[n]), least)


def shares(path: str, first: Any, second: Any, traits: TemplateTraits) -> float:
    """The share of the second prompt that its chain has in common with the first's."""
    models = {"m": traits}
    one = PARSERS[path](json.dumps(first).encode(), models)
    two = PARSERS[path](json.dumps(second).encode(), models)
    return SPANS[common(one.chain, two.chain)] / two.size


@pytest.mark.parametrize("template", TRAITS)
async def test_prompts_share_what_the_engine_shares(asked, template):
    """Of the second of two prompts, the chains and the rendered texts have the same in common."""
    fleet, _ = await asked(template)
    traits = fleet.templates.models["m"]
    compared = 0
    for what, (path, first, second) in PAIRS.items():
        as_engine = render if path == CHAT else render_messages
        try:
            one, two = as_engine(template, first()), as_engine(template, second())
        except UnrenderedError:
            continue  # the engine answers 400
        compared += 1
        engine = common(one, two) / len(two)
        ours = shares(path, first(), second(), traits)
        assert ours == pytest.approx(engine, abs=0.1), (what, ours, engine)
    assert compared >= (10 if template not in ("gemma", "qwen3.5") else 0)


async def test_names_of_one_model_share_its_cache(asked):
    fleet, engine = await asked("qwen3", "qwen", "gpt-4o")
    models = fleet.templates.models
    body = {**chat(3), "model": "qwen"}
    alias = {**body, "model": "gpt-4o"}
    one = PARSERS[CHAT](json.dumps(body).encode(), models)
    two = PARSERS[CHAT](json.dumps(alias).encode(), models)
    assert one.chain == two.chain
    assert len({body["model"] for body in engine.asked}) == 1, "it is asked about once"
    unnamed = {name: value for name, value in body.items() if name != "model"}
    assert PARSERS[CHAT](json.dumps(unnamed).encode(), models).chain == one.chain


async def test_an_argument_seen_later_is_tried(closing, fleet):
    engine = await TemplateEngine("gpt-oss").start()
    closing.push_async_callback(engine.stop)
    made = await fleet(engine.url)
    body = json.dumps(chat(2, reasoning_effort="enormous")).encode()
    prompt = PARSERS[CHAT](body, made.templates.models)
    assert prompt.doubts is not None
    made.templates.unknown("m", prompt.doubts.unknown)
    pair = b'reasoning_effort="enormous"'
    async with asyncio.timeout(20):
        while pair not in made.templates.models["m"].arguments:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    again = PARSERS[CHAT](body, made.templates.models)
    assert again.doubts is None
    assert again.chain != prompt.chain, "the effort stands at the front"


async def test_what_is_tried_has_bounds(asked):
    fleet, _ = await asked("qwen3")
    fleet.templates.unknown("m", [b"kwargs:a=%d" % n for n in range(10_000)])
    fleet.templates.unknown("m", [b'kwargs:a="' + b"x" * 10_000 + b'"'])
    (found,) = {id(each): each for each in fleet.templates._found.values()}.values()
    assert len(found.wanted) + len(found.traits.arguments) <= 64
    assert max(map(len, found.wanted)) <= 256


VLLM = b'{"object":"list","data":[{"id":"m","owned_by":"vllm"}]}'


async def test_an_engine_that_is_no_vllm_is_not_asked(engine, fleet):
    other = await engine()
    await fleet(other)
    await other.asked_again("/v1/models", 3)
    assert not other.asked["/tokenize"]


async def test_an_engine_that_does_not_tell_is_taken_to_do_what_most_do(engine, fleet):
    silent = await engine(models=VLLM)
    made = await fleet(silent)
    await silent.asked_again("/v1/models", 3)
    assert silent.asked["/tokenize"] == 1, "it is not asked again and again"
    traits = made.templates.models["m"]
    assert not traits.known
    assert traits == TemplateTraits(cache="m")


async def test_an_engine_that_hangs_is_used_without(engine, fleet):
    hanging = await engine(models=VLLM, frozen=frozenset({"/tokenize"}))
    made = await fleet(hanging, health_timeout=0.3)
    assert made.usable
    assert not made.templates.models["m"].known
