"""Reading answers: whole, cut anywhere, worded otherwise, broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from loadgen.client.answer import Answer
from loadgen.results.records import UNKNOWN


def read(data: bytes, step: int, times: list[float] | None = None) -> Answer:
    answer = Answer(keep_text=True)
    for place, start in enumerate(range(0, len(data), step)):
        now = times[place] if times else 1.0
        answer.feed_stream(data[start : start + step], now)
    answer.end()
    return answer


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_stream_cut_anywhere_is_the_same(wire: Any, newline: bytes) -> None:
    data = wire.token("one ") + wire.token("tw\u00f6", "stop") + wire.usage(10, 4, 2) + wire.DONE
    data = data.replace(b"\n", newline)
    for step in range(1, len(data) + 1):
        answer = read(data, step)
        assert answer.reason == ""
        assert (answer.chunks, len(answer.gaps)) == (2, 1)
        assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (10, 4, 2)
        assert "".join(answer.texts) == "one tw\u00f6"


def test_times_are_those_of_the_chunks_with_tokens(wire: Any) -> None:
    answer = Answer(keep_text=False)
    answer.feed_stream(b": a comment\n\n", 1.0)
    answer.feed_stream(wire.token("a"), 2.0)
    answer.feed_stream(wire.token("b"), 2.5)
    answer.feed_stream(wire.token("c", "stop"), 4.0)
    answer.feed_stream(wire.usage(1, 0, 3) + wire.DONE, 9.0)
    answer.end()
    assert (answer.first, answer.last) == (2.0, 4.0)
    assert list(answer.gaps) == [0.5, 1.5]
    assert answer.texts == []


def test_without_usage_chunks_count_as_tokens(wire: Any) -> None:
    answer = read(wire.token("a") + wire.token("b") + wire.DONE, 10_000)
    assert (answer.output_tokens, answer.cached_tokens) == (2, UNKNOWN)


def test_nulls_are_not_told(wire: Any) -> None:
    told = wire.event(choices=[], usage={"prompt_tokens": 5, "prompt_tokens_details": None})
    answer = read(wire.token("a", "stop") + told, 10_000)
    assert answer.reason == ""
    assert (answer.prompt_tokens, answer.cached_tokens) == (5, UNKNOWN)


def test_what_is_not_a_whole_answer_says_why(wire: Any) -> None:
    token, done = wire.token("a"), wire.DONE
    assert read(token, 10_000).reason == "cut off"
    assert read(done, 10_000).reason == "no tokens"
    assert read(b"", 1).reason == "no tokens"
    assert read(token + b"data: {broken\n\n" + done, 10_000).reason == "unreadable event"
    error = wire.event(error={"message": "it died", "code": 500})
    assert read(token + error + done, 10_000).reason == "error in stream"


def document(**fields: Any) -> Answer:
    answer = Answer(keep_text=True)
    answer.feed_document(json.dumps(fields).encode(), 3.0)
    answer.end()
    return answer


def test_whole_documents() -> None:
    used = {"prompt_tokens": 9, "completion_tokens": 4}
    answer = document(choices=[{"message": {"content": "hello"}}], usage=used)
    assert (answer.reason, answer.first, answer.last) == ("", 3.0, 3.0)
    assert (answer.prompt_tokens, answer.output_tokens, answer.texts) == (9, 4, ["hello"])
    assert document(choices=[{"text": "hi"}]).texts == ["hi"]
    assert document(choices=[]).reason == "no choices"
    assert document(error={"message": "no"}).reason == "error in answer"
    broken = Answer(keep_text=False)
    broken.feed_document(b"<html>", 1.0)
    assert broken.reason == "unreadable answer"
