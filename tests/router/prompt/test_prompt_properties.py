"""What must hold for every body: the chain names the prompt, no more and no less."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from prompt_bodies import anthropic, block, chat, completions, item, message, responses, tree
from prompt_respelling import respell

from router.prompt import PARSERS, Prompt, PromptError
from router.types import Inline, Reasoning, TemplateTraits

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"

brief = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

FAMILIES = [(CHAT, chat), (MESSAGES, anthropic), (RESPONSES, responses), (COMPLETIONS, completions)]
families = pytest.mark.parametrize(("path", "bodies"), FAMILIES, ids=[path for path, _ in FAMILIES])


class Keeping(dict[str, TemplateTraits]):
    """Every model's template leaves each message where it is, and renders all of it."""

    def get(self, name: str, default: Any = None) -> Any:
        return TemplateTraits(
            known=True, developer=Inline.KEPT, merges_system=False, reasoning=Reasoning.KEPT
        )


def parse(path: str, body: Any) -> Prompt:
    return PARSERS[path](json.dumps(body).encode(), Keeping())


@families
@given(data=st.data(), seed=st.integers(0, 2**32))
@brief
def test_spelling_does_not_matter(path, bodies, data, seed):
    body = data.draw(bodies)
    compact = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    one, other = PARSERS[path](compact), PARSERS[path](respell(body, seed))
    assert (one.size, one.chain, one.model) == (other.size, other.chain, other.model)
    assert one == other or one.usage_offset != other.usage_offset


def meaning(tree: Any) -> Any:
    """A body with what the APIs say is the same made the same."""
    match tree:
        case {"tools": []} | {"documents": []}:
            return meaning(
                {k: v for k, v in tree.items() if v != [] or k in ("content", "messages")}
            )
        case dict():
            rest = {k: meaning(v) for k, v in tree.items() if v is not None}
            rest.pop("signature", None)
            if rest.get("content") in ("", [], [{"type": "text", "text": ""}]):
                del rest["content"]
            content = rest.get("content")
            if isinstance(content, str):
                rest["content"] = [{"type": "text", "text": content}]
            if rest.get("tool_calls") == []:
                del rest["tool_calls"]
            return rest
        case list():
            return [meaning(each) for each in tree]
        case _:
            return tree


@given(one=chat, other=chat)
@brief
def test_other_messages_other_bytes(written, one, other):
    assume(meaning(one["messages"]) != meaning(other["messages"]))
    written.clear()
    for body in (one, other):
        parse(CHAT, {"model": "m", "messages": body["messages"]})
    assert written[0] != written[1]


@given(one=anthropic, other=anthropic)
@brief
def test_other_anthropic_messages_other_bytes(written, one, other):
    assume(meaning(one["messages"]) != meaning(other["messages"]))
    written.clear()
    for body in (one, other):
        parse(MESSAGES, {"model": "m", "messages": body["messages"]})
    assert written[0] != written[1]


@given(messages=st.lists(message, min_size=1, max_size=4), data=st.data())
@brief
def test_a_small_change_shows(written, messages, data):
    """Near misses are where framing fails: a part cut in two, a message moved or doubled."""
    changed = data.draw(mutations(messages))
    assume(meaning(messages) != meaning(changed))
    written.clear()
    parse(CHAT, {"messages": messages})
    parse(CHAT, {"messages": changed})
    assert written[0] != written[1]


@st.composite
def mutations(draw: st.DrawFn, messages: list[Any]) -> list[Any]:
    changed = json.loads(json.dumps(messages))
    at = draw(st.integers(0, len(changed) - 1))
    how = draw(st.sampled_from(("drop", "twice", "swap", "split", "retype", "role", "move")))
    if how == "drop":
        del changed[at]
    elif how == "twice":
        changed.insert(at, changed[at])
    elif how == "swap":
        changed[at], changed[0] = changed[0], changed[at]
    elif how == "split" and isinstance(changed[at].get("content"), str):
        cut = draw(st.integers(0, len(changed[at]["content"])))
        whole = changed[at]["content"]
        changed[at]["content"] = [
            {"type": "text", "text": whole[:cut]},
            {"type": "text", "text": whole[cut:]},
        ]
    elif how == "retype":
        changed[at]["content"] = [json.dumps(changed[at].get("content"))]
    elif how == "role":
        changed[at]["role"] = changed[at]["role"] + "x"
    elif how == "move":
        changed[at]["reasoning"] = "moved"
    return changed


@pytest.mark.parametrize(
    ("path", "field"), [(CHAT, "messages"), (MESSAGES, "messages"), (RESPONSES, "input")]
)
@given(data=st.data())
@brief
def test_a_longer_conversation_begins_with_the_shorter_one(written, path, field, data):
    bodies = {CHAT: message, MESSAGES: block, RESPONSES: item}[path]
    turns = data.draw(st.lists(bodies, min_size=1, max_size=5))
    if path == MESSAGES:
        turns = [{"role": "user", "content": [turn]} for turn in turns]
    cut = data.draw(st.integers(0, len(turns)))
    written.clear()
    parse(path, {"model": "m", field: turns[:cut]})
    parse(path, {"model": "m", field: turns})
    (seed, short), (other_seed, long) = written
    assert seed == other_seed
    assert long.startswith(short)


@families
@given(data=st.data())
@brief
def test_any_bytes_give_a_prompt_or_a_prompt_error(path, bodies, data):
    body = json.dumps(data.draw(bodies), ensure_ascii=data.draw(st.booleans())).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.sampled_from((0, 1, 1, 7)))
        new = data.draw(
            st.one_of(
                st.binary(max_size=3),
                st.sampled_from(
                    (
                        b"null",
                        b"[",
                        b"{",
                        b'"',
                        b"\\ud800",
                        b"NaN",
                        b"1e999",
                        b"9" * 30,
                        b"\xff",
                        b"[1]",
                        b"{}",
                    )
                ),
            )
        )
        body = body[:at] + new + body[at + cut :]
    assert_prompt_or_error(path, body)


@pytest.mark.parametrize("path", list(PARSERS))
@given(body=st.binary(max_size=60))
@brief
def test_random_bytes(path, body):
    assert_prompt_or_error(path, body)


@families
@given(data=st.data())
@brief
def test_any_value_in_any_place(path, bodies, data):
    body = data.draw(bodies)
    at: Any = body
    while True:
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not places:
            break
        place = data.draw(st.sampled_from(places))
        if isinstance(at[place], dict | list) and at[place] and data.draw(st.booleans()):
            at = at[place]
            continue
        at[place] = data.draw(tree)
        break
    assert_prompt_or_error(path, json.dumps(body).encode())


def assert_prompt_or_error(path: str, body: bytes) -> None:
    try:
        prompt = PARSERS[path](body)
    except PromptError:
        return
    assert prompt.size >= 0
    assert -1 <= prompt.usage_offset <= len(body)
