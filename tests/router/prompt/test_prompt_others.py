"""Prompts of the other paths that have any."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.prompt import PARSERS, PromptError, parse_invocations
from router.types import TemplateTraits

IDS = list(range(1000, 2000))
LONG = "All work and no play makes Jack a dull boy. " * 100


def parse(path: str, **fields: Any) -> Any:
    return PARSERS[path](json.dumps({"model": "m", **fields}).encode())


def test_token_ids_are_the_same_prompt_as_a_completion() -> None:
    one = parse("/inference/v1/generate", token_ids=IDS, sampling_params={"max_tokens": 7})
    other = parse("/v1/completions", prompt=IDS)
    assert one.chain == other.chain
    assert len(one.chain) > 3
    assert one.size == other.size
    assert one.output_limit == 7
    assert one.transfer  # sampling_params may hold them
    longer = parse("/inference/v1/generate", token_ids=[*IDS, *IDS], cache_salt=None)
    assert longer.chain[: len(one.chain)] == one.chain
    salted = parse("/inference/v1/generate", token_ids=IDS, cache_salt="s")
    assert not set(salted.chain) & set(one.chain)
    images = parse(
        "/inference/v1/generate", token_ids=IDS, features={"mm_hashes": {"image": ["a"]}}
    )
    assert not set(images.chain) & set(one.chain)
    for wrong in ("text", ["a"], [[1]], {}, None):
        with pytest.raises(PromptError):
            parse("/inference/v1/generate", token_ids=wrong)


def test_a_query_is_what_its_prompts_share() -> None:
    one = parse("/generative_scoring", query=LONG, items=["a", "b"], label_token_ids=[1])
    other = parse("/generative_scoring", query=LONG, items=["c"], label_token_ids=[2])
    assert one.chain == other.chain
    assert len(one.chain) > 3
    ids = parse("/generative_scoring", query=IDS, items=[[1]])
    assert ids.chain == parse("/v1/completions", prompt=IDS).chain
    behind = parse("/generative_scoring", query=LONG, items=["a"], item_first=True)
    assert not behind.chain
    with pytest.raises(PromptError):
        parse("/generative_scoring", query={}, items=[])


def test_invocations_are_read_as_what_they_hold() -> None:
    chat = json.dumps({"model": "m", "messages": [{"role": "user", "content": LONG}]}).encode()
    text = json.dumps({"model": "m", "prompt": LONG}).encode()
    assert parse_invocations(chat) == PARSERS["/v1/chat/completions"](chat)
    assert parse_invocations(text) == PARSERS["/v1/completions"](text)
    cut = text.replace(b"Jack", rb"\ud83d", 1)
    assert parse_invocations(cut) == PARSERS["/v1/completions"](cut)
    for other in (b'{"model":"m","input":"x"}', b"[]", b"", b"{", b"\xff"):
        assert parse_invocations(other) is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/inference/v1/generate", {"token_ids": IDS}),
        ("/generative_scoring", {"query": LONG, "items": ["a"]}),
    ],
)
def test_names_of_one_model_share_its_cache(path: str, fields: dict[str, Any]) -> None:
    models = {name: TemplateTraits(cache="root") for name in ("m", "alias")}
    one, other, alone = (
        PARSERS[path](json.dumps({"model": name, **fields}).encode(), models).chain
        for name in ("m", "alias", "another")
    )
    assert one == other != alone


def test_invocations_are_laid_out_as_the_model_does() -> None:
    models = {name: TemplateTraits(cache="root") for name in ("m", "alias")}
    for fields in ({"prompt": LONG}, {"messages": [{"role": "user", "content": LONG}]}):
        one, other = (
            parse_invocations(json.dumps({"model": name, **fields}).encode(), models)
            for name in ("m", "alias")
        )
        assert one is not None
        assert other is not None
        assert one.chain == other.chain
