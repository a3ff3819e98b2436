"""Rendering and tokenising, with a tokenizer made on the spot."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from bench.chat_model import SPECIAL, make_model
from router.kv_events.token_chain import chain, seed
from router.render.anthropic import as_chat
from router.render.conversation import conversation, tool_definitions
from router.render.errors import ModelError, UnrenderedError
from router.render.memory import ENTRY_BYTES, TokenMemory, key_of
from router.render.model import RenderModel, find_folder
from router.render.template import ChatTemplate
from router.render.tokenizer import SAMPLES, SLICE, ModelTokenizer
from router.render.tokens import PAGE, ChainMemory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), list(SAMPLES) * 5, 600)


@pytest.fixture(scope="module")
def model(folder: Path) -> RenderModel:
    return RenderModel(folder)


def body(**fields: Any) -> bytes:
    return msgspec.json.encode({"model": "m", **fields})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def read(model: RenderModel, api: str = "chat", **fields: Any) -> str:
    return model.read(api, body(**fields)).text


# Tokenising in pieces

texts = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, "\n", "\n\n", "a\nB", " ", "don't", "}\n", "ü", "e\u0301", "数", "<|im"]),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_pieces_give_the_tokens_of_the_whole(model: RenderModel, text: str) -> None:
    assert model.tokenizer.encode_pieces(text) == model.tokenizer.encode(text)


def test_long_texts_are_cut_where_it_makes_no_difference(model: RenderModel) -> None:
    text = "".join(f"line {number};\nLine  of {{\n  x\n}}\n\nand more\n" for number in range(3000))
    pieces = model.tokenizer.pieces(text)
    assert len(pieces) > 5
    assert all(len(piece) < 3 * SLICE for piece in pieces)
    assert model.tokenizer.encode_pieces(text) == model.tokenizer.encode(text)


def word_tokenizer(**token: Any) -> Tokenizer:
    vocabulary = {"<unk>": 0, "a": 1, "▁a": 2, "b": 3, "▁b": 4}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    made.add_tokens([AddedToken("<s>", normalized=False, **token)])
    return made


def test_a_pre_tokenizer_that_minds_the_place_forbids_pieces() -> None:
    made = word_tokenizer()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer = ModelTokenizer(made)
    assert not tokenizer.split
    assert tokenizer.pieces("a<s>b") == ["a<s>b"]
    made = word_tokenizer()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    assert ModelTokenizer(made).split


def test_a_token_that_takes_spaces_with_it_stays_with_its_neighbours() -> None:
    made = word_tokenizer()
    made.add_tokens([AddedToken("<m>", normalized=False, lstrip=True)])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = ModelTokenizer(made)
    assert [p for p in tokenizer.pieces("a<s>b <m> a<s>") if isinstance(p, str)] == ["a", "b <m> a"]
    assert tokenizer.encode_pieces("a<s>b <m> a<s>") == tokenizer.encode("a<s>b <m> a<s>")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        RenderModel(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        RenderModel(tmp_path)
    with pytest.raises(ModelError, match="no folder /none; set exact_tokenizer"):
        find_folder("/none", download=False)


# Templates


def test_the_chat_template_is_rendered_with_its_arguments(folder: Path) -> None:
    text = (
        "{{ bos_token }}{% for m in messages %}{% generation %}[{{ m.role }}] {{ m.content }}"
        "{% endgeneration %}{% endfor %}{% if enable_thinking %}think{% endif %}{{ tools | tojson }}"
    )
    template = ChatTemplate(text, {"bos_token": "<s>"})
    assert not template.parts
    messages = [user("ü<b>")]
    made = template.render(messages, None, {"enable_thinking": True, "unknown": 1})
    assert made == "<s>[user] ü<b>thinknull"
    with pytest.raises(UnrenderedError, match="max_length"):
        template.render(messages, None, {"max_length": 3})


def test_templates_that_walk_through_content_get_parts() -> None:
    loops = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    assert ChatTemplate(loops, {}).parts
    renamed = (
        "{% set rest = messages[1:] %}{% macro show(content) %}{% for c in content %}"
        "{{ c.text }}{% endfor %}{% endmacro %}{% for m in rest %}{{ show(m.content) }}{% endfor %}"
    )
    assert ChatTemplate(renamed, {}).parts
    assert not ChatTemplate("{% for m in messages %}{{ m['content'] }}{% endfor %}", {}).parts


def test_a_template_that_refuses_leaves_the_prompt_alone() -> None:
    template = ChatTemplate("{{ raise_exception('no') }}", {})
    with pytest.raises(UnrenderedError, match="no"):
        template.render([], None, {})
    with pytest.raises(ModelError, match="cannot be read"):
        ChatTemplate("{% for %}", {})


def test_a_named_template_is_taken_for_tools(tmp_path: Path, folder: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    model = RenderModel(tmp_path)
    tool = {"type": "function", "function": {"name": "f"}}
    assert read(model, messages=[user("x")]) == "plain"
    assert read(model, messages=[user("x")], tools=[tool]) == "tools"
    assert read(RenderModel(tmp_path, "own"), messages=[user("x")]) == "own"


# Messages


def test_messages_become_what_vllm_makes_of_them() -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'},
    }
    odd = {"function": {"name": "g", "arguments": "not json"}}
    found = conversation(
        [
            {"role": "system", "content": "x-anthropic-billing-header: 1\nBe brief."},
            user([{"type": "text", "text": "a"}, {"type": "text", "text": ""}, "b"]),
            {"role": "assistant", "content": None, "tool_calls": [call, odd], "reasoning_content": "r"},
            {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "ok"}]},
            {"role": "assistant", "content": "", "tool_calls": []},
        ],
        parts=False,
        developer=True,
    )  # fmt: skip
    assert found[0]["content"] == "Be brief."
    assert found[1]["content"] == "a\nb"
    assert found[2]["content"] == ""
    assert found[2]["reasoning"] == found[2]["reasoning_content"] == "r"
    assert list(found[2]["tool_calls"][0]["function"]["arguments"].items()) == [("b", 1), ("a", 2)]
    assert found[2]["tool_calls"][1]["function"]["arguments"] == {}
    assert found[3] == {"role": "tool", "content": "ok", "tool_call_id": "1"}
    assert "tool_calls" not in found[4]


def test_parts_are_kept_for_templates_that_want_them() -> None:
    messages = [user("x"), {"role": "tool", "content": ["a", "b"]}]
    found = conversation(messages, parts=True, developer=True)
    assert found[0]["content"] == [{"type": "text", "text": "x"}]
    assert found[1]["content"] == "a\nb"


def test_developer_messages_become_one_system_message() -> None:
    messages = [
        user("x"),
        {"role": "developer", "content": "a"},
        {"role": "system", "content": "b"},
    ]
    found = conversation(messages, parts=False, developer=False)
    assert found == [{"role": "system", "content": "a\n\nb"}, user("x")]


def test_tools_are_written_as_the_request_model_dumps_them() -> None:
    (found,) = (
        tool_definitions([{"function": {"parameters": {}, "name": "f", "x": 1}, "y": 2}]) or []
    )
    assert json.dumps(found) == (
        '{"type": "function", "function": {"name": "f", "description": null, "parameters": {}}}'
    )


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("media", {"messages": [user([{"type": "image_url", "image_url": {"url": "x"}}])]}),
        ("shape", {"messages": [{"content": "x"}]}),
        ("shape", {"messages": [user(3)]}),
        ("argument", {"messages": [user("x")], "truncate_prompt_tokens": 5}),
        ("argument", {"messages": [user("x")], "chat_template": "{{ 1 }}"}),
        ("argument", {"messages": [user("x")], "kv_transfer_params": {"prompt_token_ids": [1]}}),
    ],
)
def test_what_cannot_be_rendered_is_told_in_a_word(
    model: RenderModel, word: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnrenderedError) as caught:
        model.read("chat", body(**fields))
    assert caught.value.word == word


def test_completions_as_text_and_as_ids(model: RenderModel) -> None:
    assert read(model, "completions", prompt="abc") == "abc"
    made = model.read("completions", body(prompt=[5, 6, 7], cache_salt="s"))
    assert array("I", made.tokens).tolist() == [5, 6, 7]
    assert made.salt == "s"
    assert model.read("completions", body(prompt=[[5, 6]])).tokens == array("I", [5, 6]).tobytes()
    with pytest.raises(UnrenderedError, match="several"):
        model.read("completions", body(prompt=["a", "b"]))


def test_a_claude_body_becomes_the_same_chat() -> None:
    chat = as_chat(
        {
            "model": "m",
            "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"},
                       {"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "go"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t",
                     "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]},
                    {"type": "text", "text": "and?"}]},
            ],
            "tools": [{"name": "f", "input_schema": {"properties": {}}}],
        },
        merge_system=False,
    )  # fmt: skip
    assert chat["messages"][0] == {"role": "system", "content": "Be brief."}
    assert chat["messages"][1] == {"role": "user", "content": "go"}
    assert chat["messages"][2]["reasoning"] == "hm"
    assert chat["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert chat["messages"][3] == {"role": "tool", "tool_call_id": "t", "content": "1\n2"}
    assert chat["messages"][4] == {"role": "user", "content": "and?"}
    parameters = chat["tools"][0]["function"]["parameters"]
    assert parameters == {"properties": {}, "type": "object"}


# Memory


def test_the_memory_stays_within_its_bound_and_keeps_what_is_used() -> None:
    limit = 40 * (ENTRY_BYTES + 400)
    memory = TokenMemory(limit)
    used = key_of("used", 1)
    memory.put(used, bytes(400))
    for number in range(500):
        assert memory.get(used) == bytes(400)
        memory.put(key_of(f"text {number}", 1), bytes(400))
        assert memory.nbytes <= limit
    assert memory.tokens == memory.nbytes // (ENTRY_BYTES + 400) * 100
    assert memory.get(key_of("text 0", 1)) is None
    memory.put(key_of("large", 1), bytes(limit))
    assert memory.get(key_of("large", 1)) is None


def test_remembered_chains_are_the_chains() -> None:
    memory = ChainMemory(1 << 20)
    first = array("I", range(3 * PAGE + 50))
    second = first[: 2 * PAGE] + array("I", [7] * PAGE)
    for tokens in (first, second, first):
        for block in (16, 48, 5000):
            made = memory.chain(tokens.tobytes(), block, seed("", ""))
            assert made == chain(tokens.tobytes(), block, seed("", ""))
    assert (
        memory.chain(first.tobytes(), 16, seed("", "s"))[0]
        != chain(first.tobytes(), 16, seed("", ""))[0]
    )
