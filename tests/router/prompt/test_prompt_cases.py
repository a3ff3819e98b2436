"""What counts as the prefix, what does not, and what is refused, case by case."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.prompt import PARSERS, Prompt, PromptError
from router.types import Effect, TemplateTraits

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
LONG = "All work and no play makes Jack a dull boy. " * 40
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": [{"role": "user", "content": LONG}]},
    COMPLETIONS: {"model": "m", "prompt": LONG},
    RESPONSES: {"model": "m", "input": LONG},
    MESSAGES: {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": LONG}]},
}
paths = pytest.mark.parametrize("path", list(BODIES))


def parse(path: str, **changes: Any) -> Prompt:
    return PARSERS[path](json.dumps(BODIES[path] | changes).encode())


@paths
@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.3, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 2},
        {"stream": True},
        {"user": "someone", "prompt_cache_key": "k"},
        {"tool_choice": "auto"},
        {"cache_salt": None, "tools": None, "chat_template_kwargs": None},
        {"something_new": {"a": [1, 2]}},
    ],
)
def test_what_is_not_in_the_prompt_leaves_the_chain(path, change):
    assert parse(path, **change).chain == parse(path).chain


@pytest.mark.parametrize(
    ("path", "change"),
    [(path, {"model": "other"}) for path in BODIES]
    + [(path, {"cache_salt": "s"}) for path in BODIES]
    + [(path, {"tools": TOOLS}) for path in (CHAT, RESPONSES, MESSAGES)]
    + [
        (CHAT, {"chat_template": "{{ messages }}"}),
        (CHAT, {"documents": [{"text": "d"}]}),
        (CHAT, {"mm_processor_kwargs": {"size": 1}}),
        (CHAT, {"truncate_prompt_tokens": 5}),
        (COMPLETIONS, {"suffix": "s"}),
        (COMPLETIONS, {"add_special_tokens": False}),
        (RESPONSES, {"instructions": "i"}),
        (RESPONSES, {"previous_response_id": "r"}),
        (MESSAGES, {"system": "s"}),
    ],
)
def test_what_is_in_the_prompts_head_changes_every_block(path, change):
    plain, changed = parse(path), parse(path, **change)
    assert len(plain.chain) >= 4
    assert not set(plain.chain) & set(changed.chain)


def test_no_block_is_shared_between_tool_sets():
    one, other = ([TOOLS[0] | {"n": n}] for n in (1, 2))
    chains = [set(parse(CHAT, tools=tools).chain) for tools in (one, other, [])]
    assert not chains[0] & chains[1]
    assert not chains[0] & chains[2]


def test_no_block_is_shared_between_apis():
    chains = [set(parse(path).chain) for path in BODIES]
    assert sum(map(len, chains)) == len(set().union(*chains))


def test_no_tools_is_the_same_as_none():
    assert parse(CHAT, tools=[]).chain == parse(CHAT).chain
    assert parse(MESSAGES, tools=[]).chain == parse(MESSAGES).chain


def test_a_null_in_a_tool_is_the_same_as_nothing_but_not_in_its_parameters():
    def tools(**function: Any) -> list[int]:
        tool = {"type": "function", "function": {"name": "f"} | function}
        return list(parse(CHAT, tools=[tool]).chain)

    assert tools(strict=None) == tools()
    assert tools(parameters={"default": None}) != tools(parameters={})


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def said(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user"} | fields]}


def calling(**call: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


def result(*texts: str) -> dict[str, Any]:
    parts = [{"type": "text", "text": text} for text in texts]
    return {"type": "tool_result", "tool_use_id": "t", "content": parts}


A, B = ({"type": "text", "text": text} for text in "ab")


@pytest.mark.parametrize(
    ("path", "one", "other"),
    [
        (MESSAGES, user(result("a"), B), user(result("a", "b"))),
        (CHAT, user(A, B), user({"type": "text", "text": "a\nb"})),
        (CHAT, user(A), user(A | {"weight": 2})),
        (CHAT, user({"image_url": "x"}), user({"image_url": "y"})),
        (CHAT, user({"type": "file", "file_id": "x"}), user({"type": "file", "file_id": "y"})),
        (CHAT, said(name="a"), said(name="b")),
        (CHAT, said(name="a"), said(content="a")),
        (CHAT, said(tool_call_id="a"), said(tool_call_id="b")),
        (CHAT, calling(id="1", function={"name": "f"}), calling(id="2", function={"name": "f"})),
        (CHAT, calling(id="1", function={"name": "f"}), calling(id="1", function={"name": "g"})),
        (CHAT, calling(function={"arguments": "1"}), calling(function={"arguments": "2"})),
        (CHAT, said(tools=TOOLS), said()),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "1"}]},
         {"input": [{"type": "function_call_output", "call_id": "2"}]}),
        (RESPONSES, {"input": [{"type": "function_call", "call_id": "1"}]},
         {"input": [{"type": "function_call", "call_id": "2"}]}),
        (COMPLETIONS, {"prompt": "1,2"}, {"prompt": [1, 2]}),
        (COMPLETIONS, {"prompt": [1, 2]}, {"prompt": [12]}),
        (COMPLETIONS, {"model": "a", "cache_salt": "s"}, {"model": "b", "cache_salt": "s"}),
    ],
)  # fmt: skip
def test_small_differences_show(written, path, one, other):
    for changes in (one, other):
        parse(path, **changes)
    assert written[0] != written[1]


def test_ids_and_states_of_items_are_not_in_the_prompt(written):
    for n in (1, 2):
        item = {"type": "web_search_call", "id": f"ws_{n}", "status": f"s{n}", "action": {"q": "x"}}
        parse(RESPONSES, input=[item])
    assert written[0] == written[1]


@pytest.mark.parametrize("size", [10, 600, 20_000])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize(
    ("plain", "escaped"), [("/", "\\/"), ("u", "\\u0075"), ("\u00e9", "\\u00E9")]
)
def test_escapes_are_found_in_strings_of_any_size(written, size, position, plain, escaped):
    body = '{"messages":[{"role":"user","content":"%s"}],"pad":"%s"}'
    for spelled in (plain, escaped):
        text = "x" * position + "y" * size + spelled + "z" * size
        PARSERS[CHAT]((body % (text, "p" * 9000)).encode())
    assert written[0] == written[1]


def size(*messages: Any) -> int:
    return parse(CHAT, messages=list(messages)).size


@pytest.mark.parametrize(
    "content", [None, "", [], [{"type": "text", "text": ""}], [{"text": "", "type": "text"}]]
)
def test_empty_contents_are_the_same(content):
    assert size({"role": "user", "content": content}) == size({"role": "user"})


def test_a_text_part_is_the_same_as_a_string():
    part = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    assert parse(CHAT, messages=[{"role": "user", "content": [part]}]) == parse(CHAT)


def test_reasoning_content_is_the_former_name_of_reasoning():
    def chain(**extra: str) -> list[int]:
        return list(parse(CHAT, messages=[{"role": "assistant", "content": LONG} | extra]).chain)

    assert chain(reasoning="r") == chain(reasoning_content="r") != chain()


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_the_billing_line_agents_put_first_does_not_count(path):
    def chain(cch: str, *, as_block: bool) -> list[int]:
        line = f"x-anthropic-billing-header: cc_version=1; cch={cch};"
        content: Any = f"{line}\n{LONG}"
        if as_block:
            content = [{"type": "text", "text": line}, {"type": "text", "text": LONG}]
        if path == MESSAGES:
            return list(parse(path, system=content).chain)
        system = {"role": "system", "content": content}
        return list(parse(path, messages=[system, {"role": "user", "content": "x"}]).chain)

    assert chain("1", as_block=True) == chain("2", as_block=True) != []
    assert chain("1", as_block=False) == chain("2", as_block=False) == chain("1", as_block=True)


@pytest.mark.parametrize(
    "odd", [7, None, "text", [1], {"role": 7, "content": "x"}, {"content": "no role"}]
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_messages_with_an_odd_one_are_named_by_their_bytes(path, odd):
    """No engine takes such a body, so that it is enough to tell it from others."""
    usual = BODIES[path]["messages"]
    one, again, longer = (
        parse(path, messages=messages)
        for messages in ([odd, *usual], [odd, *usual], [odd, *usual, *usual])
    )
    plain = parse(path, messages=usual)
    assert one == again
    assert longer.size > one.size
    assert set(longer.chain) & set(one.chain)
    assert not set(one.chain) & set(plain.chain)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, b"", None),
        (CHAT, b"{", None),
        (CHAT, b"[]", None),
        (CHAT, b"null", None),
        (CHAT, b"hello", None),
        (CHAT, b'{"messages":[{"role":"user","content":"\xff\\u0041"}]}', None),
        (CHAT, b"{}", "messages"),
        (CHAT, b'{"messages":null}', "messages"),
        (CHAT, b'{"messages":"hi"}', "messages"),
        (CHAT, b'{"messages":[],"model":7}', "model"),
        (MESSAGES, b'{"messages":{}}', "messages"),
        (RESPONSES, b"{}", "input"),
        (RESPONSES, b'{"input":7}', "input"),
        (COMPLETIONS, b'{"prompt":7}', "prompt"),
        (COMPLETIONS, b'{"prompt":{}}', "prompt"),
        (COMPLETIONS, b'{"prompt":["a",7]}', "prompt"),
        (COMPLETIONS, b'{"prompt":[["a"]]}', "prompt"),
    ],
)
def test_what_no_engine_can_serve_is_refused(path, body, param):
    with pytest.raises(PromptError) as caught:
        PARSERS[path](body)
    assert caught.value.param == param
    assert caught.value.message.endswith(".") or "JSON" in caught.value.message


@paths
def test_what_is_nested_deeper_than_the_stack_is_read(path):
    """How deep an engine reads is its Python's to say."""
    deep = b"[" * 10_000 + rb'"]\\"' + b"]" * 10_000
    body = json.dumps(BODIES[path]).encode()
    assert PARSERS[path](b'{"deep":' + deep + b"," + body[1:]).chain == parse(path).chain


@paths
@pytest.mark.parametrize(
    "field",
    [
        b'"logit_bias":NaN',
        b'"x":[-Infinity, NaN]',
        b'"model":7,"model":"m"',
        b'"x":1e999',
        b'"x":' + b"9" * 4000,
        b'"x":"\\ud800"',
        b'"stream":7',
    ],
)
def test_what_need_not_be_understood_is_not_refused(path, field):
    body = json.dumps(BODIES[path]).encode()
    assert PARSERS[path](b"{" + field + b"," + body[1:]).chain == parse(path).chain


@paths
def test_bodies_that_are_json_only_to_python(path):
    body = json.dumps(BODIES[path] | {"stream": True})
    for encoded in (b"\xef\xbb\xbf" + body.encode(), body.encode("utf-16")):
        prompt = PARSERS[path](encoded)
        assert prompt.chain == parse(path).chain
        assert prompt.usage_offset == -1, "no offset into bytes the engine will not see"


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, False),
        ({"stream": False}, False),
        ({"stream": True}, True),
        ({"stream": "true"}, True),
        ({"stream": 1}, True),
        ({"stream": True, "stream_options": {}}, False),
        ({"stream": True, "stream_options": None}, False),
    ],
)
def test_where_usage_may_be_asked_for(changes, asks):
    for path in (CHAT, COMPLETIONS):
        assert (parse(path, **changes).usage_offset == 1) is asks
    for path in (RESPONSES, MESSAGES):
        assert parse(path, **changes).usage_offset == -1


def test_usage_may_be_asked_for_behind_leading_space():
    body = b' \n { "stream": true, "messages": []}'
    assert PARSERS[CHAT](body).usage_offset == 4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, ""),
        ({"user": "u"}, "u"),
        ({"user": "u", "session_id": "s"}, "s"),
        ({"user": "u", "prompt_cache_key": "k"}, "k"),
        ({"user": "u", "prompt_cache_key": ""}, "u"),
        ({"user": 7}, ""),
        ({"user": "\u00fc"}, "ü"),
    ],
)
def test_the_sessions_name(changes, key):
    assert all(parse(path, **changes).key == key for path in BODIES)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [({}, 0), ({"max_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
     ({"max_tokens": None}, 0), ({"max_tokens": -1}, 0), ({"max_tokens": "5"}, 5), ({"max_tokens": 5.0}, 5),
     ({"max_tokens": "five"}, 0), ({"max_tokens": 5.5}, 0), ({"max_tokens": True}, 0),
     ({"max_tokens": 10**30}, 999_999_999), ({"max_tokens": "1e30"}, 999_999_999)],
)  # fmt: skip
def test_the_limit_on_the_answer(changes, limit):
    assert parse(CHAT, **changes).output_limit == limit


@paths
def test_a_model_is_not_required(path):
    body = {k: v for k, v in BODIES[path].items() if k != "model"}
    assert PARSERS[path](json.dumps(body).encode()).model == ""


def test_a_picture_known_by_name_needs_no_data():
    def shown(**fields: Any) -> list[int]:
        part = {"type": "image_url", **fields}
        return list(parse(CHAT, **user({"type": "text", "text": LONG}, part)).chain)

    data = {"url": "data:image/png;base64," + "A" * 9000}
    sent = shown(image_url=data, uuid="cat")
    assert shown(image_url=None, uuid="cat") == sent
    assert shown(uuid="cat") == sent
    assert shown(uuid="dog") != sent
    assert shown(image_url=data) != sent


def test_each_prompt_of_a_body_has_a_chain():
    several = parse(COMPLETIONS, prompt=[LONG, LONG + "x" * 600, "short"])
    alone = [parse(COMPLETIONS, prompt=text) for text in (LONG, LONG + "x" * 600, "short")]
    assert [several.chain, *several.more] == [each.chain for each in alone]
    assert several.size == sum(each.size for each in alone)
    ids = [list(range(600)), list(range(700, 1400))]
    tokens = parse(COMPLETIONS, prompt=ids)
    assert [tokens.chain, *tokens.more] == [parse(COMPLETIONS, prompt=one).chain for one in ids]


@pytest.mark.parametrize(
    ("path", "change"),
    [(path, {"chat_template_kwargs": {"a": 1}}) for path in (CHAT, RESPONSES, MESSAGES)]
    + [
        (CHAT, {"reasoning_effort": "low"}),
        (RESPONSES, {"reasoning": {"effort": "low"}}),
        (MESSAGES, {"thinking": {"type": "disabled"}}),
        (MESSAGES, {"output_config": {"effort": "low"}}),
    ],
)
def test_an_argument_parts_prompts_only_where_it_changes_the_head(path, change):
    plain, changed = parse(path), parse(path, **change)
    assert changed.chain == plain.chain, "until it is known"
    assert changed.doubts is not None
    (pair,) = changed.doubts.unknown
    known = TemplateTraits(arguments={pair: Effect(b"another")})
    body = json.dumps(BODIES[path] | change).encode()
    assert not set(PARSERS[path](body, {"m": known}).chain) & set(plain.chain)
    assert changed.doubts.explain(1000.0, 0.0), "a loss is put down to it"
