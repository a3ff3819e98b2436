"""Text and bodies made from segments."""

from __future__ import annotations

import json
from itertools import islice
from random import Random

import pytest

from loadgen.client.body import BodyMaker
from loadgen.workloads import Role, Segment, Step, make
from loadgen.workloads.text import text


def test_text_is_a_function_of_the_id_and_more_continues_less() -> None:
    random = Random(1)
    for _ in range(50):
        number = random.getrandbits(63)
        long = text(number, 5000)
        assert len(long) == 5000
        assert text(number, 700) == long[:700]
        assert json.loads(b'"' + long + b'"').encode() == long


def test_texts_of_different_ids_differ_at_once() -> None:
    starts = {text(number, 16) for number in range(1000)}
    assert len(starts) == 1000


def test_text_longer_than_what_is_prepared() -> None:
    size = (1 << 21) + 12345
    assert len(text((1 << 20) - 1, size)) == size


def segment(number: int, role: Role, tokens: int = 10) -> Segment:
    return Segment(number, tokens, role)


PROMPT = (
    segment(1, Role.TOOLS),
    segment(2, Role.SYSTEM),
    segment(3, Role.USER),
    segment(4, Role.USER),
    segment(5, Role.ASSISTANT),
    segment(6, Role.TOOL),
)
STEP = Step(PROMPT, segment(7, Role.ASSISTANT, 33))


def test_a_chat_body() -> None:
    body = json.loads(BodyMaker('a "model"').body(STEP, {}))
    assert body["model"] == 'a "model"'
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    user = body["messages"][1]["content"]
    assert user == text(3, 40).decode() + "\n\n" + text(4, 40).decode()
    (call,) = body["messages"][2]["tool_calls"]
    assert body["messages"][3]["tool_call_id"] == call["id"]
    (tool,) = body["tools"]
    assert tool["function"]["description"] == text(1, 40).decode()
    assert body["max_tokens"] == 33
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["ignore_eos"] is True


def test_what_was_answered_stands_in_for_the_declared_answer() -> None:
    answers = {5: json.dumps('said "this"\n')[1:-1].encode()}
    body = json.loads(BodyMaker("m").body(STEP, answers))
    assert body["messages"][2]["content"] == 'said "this"\n'


def test_a_completions_body_without_streaming_or_vllm_fields() -> None:
    maker = BodyMaker("m", "completions", stream=False, vllm_fields=False)
    body = json.loads(maker.body(STEP, {}))
    assert body["prompt"].startswith(text(1, 40).decode() + " " + text(2, 40).decode())
    assert not {"stream", "ignore_eos", "stream_options", "messages"} & set(body)


def test_an_unknown_api_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown API 'soap'"):
        BodyMaker("m", "soap")


def test_sizes_add_up_to_what_a_simulated_engine_counts() -> None:
    """The upper bound would be off if requests were larger than it believes."""
    from loadgen.replicas.prompts import render

    maker = BodyMaker("m")
    for session in islice(make("agent").sessions(2), 20):
        for step in session.steps:
            body = json.loads(maker.body(step, {}))
            counted = len(render(body["messages"], body.get("tools"))) / 4
            assert sum(maker.sizes(step, {})) == pytest.approx(counted, rel=0.02)
