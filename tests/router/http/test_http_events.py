"""What is read from a stream's events: that it has begun, its end, errors and usage."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.http.events import DEAD, LARGEST, Scanner, Usage, UsageSearch, usage_of
from router.http.routes import Form


def sse(data: object, name: str = "") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data)}\n\n".encode()


def scanned(form: Form, *pieces: bytes, mark: bytes = b"") -> Scanner:
    scanner = Scanner(form, mark)
    for piece in pieces:
        scanner.scan(piece)
    return scanner


TOKEN = sse({"choices": [{"delta": {"content": 'say "usage", "error" and [DONE]'}}]})
TOOLS = [{"type": "function", "parameters": {"usage": {"input_tokens": 7, "output_tokens": 7}}}]
COMPLETED = sse(
    {
        "type": "response.completed",
        "response": {
            "tools": TOOLS,
            "usage": {
                "input_tokens": 50,
                "output_tokens": 3,
                "input_tokens_details": {"cached_tokens": 16},
            },
            "metadata": {"usage": {"input_tokens": 1}},
        },
    },
    "response.completed",
)


@pytest.mark.parametrize(
    "text",
    [
        b": keep-alive\n\n",
        b":\n\n",
        b"\n\n",
        b"retry: 100\n\n",
        b": a\r\n: b\r\n\r\n",
        sse({"type": "ping"}, "ping"),
        TOKEN[:-2],
    ],
)
def test_what_does_not_begin_an_answer(text: bytes) -> None:
    scanner = scanned(Form.ANTHROPIC, text)
    assert (scanner.began, scanner.token, scanner.ended) == (False, False, False)
    assert scanner.error is None


@pytest.mark.parametrize(
    ("form", "end"),
    [
        (Form.OPENAI, b"data: [DONE]\n\n"),
        (Form.OPENAI, b"data:[DONE]\r\n\r\n"),
        (Form.RESPONSES, COMPLETED),
        (Form.RESPONSES, sse({"type": "response.incomplete", "response": {}})),
        (Form.ANTHROPIC, sse({"type": "message_stop"}, "message_stop")),
    ],
)
def test_each_api_has_an_end(form: Form, end: bytes) -> None:
    for at in range(len(end)):
        scanner = scanned(form, TOKEN, end[:at], end[at:])
        assert (scanner.began, scanner.ended, scanner.error) == (True, True, None)
    assert not scanned(form, TOKEN, end[:-1]).ended


def test_tokens_of_responses_are_told_from_what_comes_before_them() -> None:
    created = sse({"type": "response.created", "response": {"error": None, "usage": None}})
    delta = sse({"type": "response.output_text.delta", "delta": "a"})
    scanner = scanned(Form.RESPONSES, created, mark=b'delta"')
    assert (scanner.began, scanner.token, scanner.error) == (True, False, None)
    scanner.scan(delta)
    assert scanner.token


CORE = f"{DEAD.decode()}. See stack trace (above) for the root cause."


@pytest.mark.parametrize(
    ("form", "event", "of_request", "dead"),
    [
        (Form.OPENAI, sse({"error": {"message": CORE, "code": 500}}), False, True),
        (Form.OPENAI, sse({"error": {"message": "bad", "code": 400}}), True, False),
        (Form.OPENAI, sse({"error": {"message": "no", "code": 501}}), True, False),
        (Form.OPENAI, sse({"error": {"message": "busy", "code": 503}}), False, False),
        (Form.OPENAI, sse({"error": "odd"}), False, False),
        (Form.OPENAI, sse({"error": {"type": "x"}}, "error"), False, False),
        (
            Form.ANTHROPIC,
            sse({"type": "error", "error": {"type": "internal_error"}}, "error"),
            False,
            False,
        ),
        (
            Form.ANTHROPIC,
            sse({"type": "error", "error": {"type": "invalid_request_error"}}, "error"),
            True,
            False,
        ),
        (Form.RESPONSES, sse({"type": "error", "code": "server_error"}, "error"), False, False),
        (
            Form.RESPONSES,
            sse({"type": "response.failed", "response": {"error": {"code": "server_error"}}}),
            False,
            False,
        ),
    ],
)
def test_errors_and_whose_they_are(form: Form, event: bytes, of_request: bool, dead: bool) -> None:
    for at in range(len(event)):
        scanner = scanned(form, event[:at], event[at:])
        assert scanner.error is not None
        assert (scanner.error.of_request, scanner.error.dead) == (of_request, dead)
        assert not scanner.began


@pytest.mark.parametrize(
    ("event", "of_request"),
    [
        ({"type": "response.failed", "response": {"error": {"code": "server_error"}}}, False),
        ({"type": "response.failed", "response": {"error": {"code": "invalid_prompt"}}}, True),
    ],
)
def test_a_failure_too_large_to_keep(event: dict[str, object], of_request: bool) -> None:
    event["text"] = "x" * (2 * LARGEST)
    text = sse(event)
    scanner = Scanner(Form.RESPONSES, b"")
    for at in range(0, len(text), 60_000):
        scanner.scan(text[at : at + 60_000])
    assert scanner.error is not None
    assert (scanner.ended, scanner.error.of_request) == (True, of_request)


def test_what_is_no_error() -> None:
    for event in (
        TOKEN,
        sse({"choices": [{"finish_reason": "error"}]}),
        sse({"choices": [], "error": None}),
        sse({"choices": [{"delta": {"tool_calls": [{"function": {"name": "error"}}]}}]}),
        COMPLETED,
    ):
        assert scanned(Form.OPENAI, event).error is None


def test_usage_of_messages_comes_in_two_parts() -> None:
    start = sse({"type": "message_start", "message": {"usage": {"input_tokens": 90}}})
    scanner = scanned(Form.ANTHROPIC, start)
    assert scanner.usage == Usage(90, 0, -1)
    scanner.scan(sse({"type": "message_delta", "usage": {"output_tokens": 4}}))
    assert scanner.usage == Usage(90, 4, -1)
    full = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 80}
    scanner.scan(sse({"type": "message_delta", "usage": full}))
    assert scanner.usage == Usage(90, 5, 80)


FORGED = [
    {"prompt_tokens": -1, "completion_tokens": 2},
    {"prompt_tokens": 9e17, "completion_tokens": 2},
    {"prompt_tokens": 10**30},
    {"prompt_tokens": 5, "completion_tokens": -3},
    {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}},
    {"prompt_tokens": "5"},
    {"input_tokens": 5, "cache_read_input_tokens": -2},
    {},
    5,
]


@pytest.mark.parametrize("usage", FORGED)
def test_figures_that_no_engine_means_are_none(usage: object) -> None:
    assert usage_of(json.dumps({"usage": usage}).encode()) is None
    assert scanned(Form.OPENAI, sse({"choices": [], "usage": usage})).usage is None


def test_only_the_engines_own_place_counts() -> None:
    body = {"usage": {"input_tokens": 3, "output_tokens": 1}, "tools": TOOLS}
    assert usage_of(json.dumps(body).encode()) == Usage(3, 1, -1)
    assert usage_of(json.dumps({"tools": TOOLS}).encode()) is None
    assert scanned(Form.RESPONSES, COMPLETED).usage == Usage(50, 3, 16)


BODY = json.dumps(
    {
        "choices": [
            {
                "message": {"content": '\\"usage": {"prompt_tokens": 1} \\\\ {[' * 9},
                "logprobs": [{"token": '"\\', "bytes": [1]}] * 20,
                "usage": {"prompt_tokens": 2, "completion_tokens": 2},
            }
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
        "prompt_token_ids": list(range(300)),
    }
).encode()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([BODY, COMPLETED[len(b"event: response.completed\ndata: ") :]]),
    st.lists(st.integers(1, 400), min_size=1),
)
def test_usage_is_found_in_pieces_of_any_size(text: bytes, sizes: list[int]) -> None:
    search = UsageSearch()
    rest = text
    for size in itertools.cycle(sizes):
        search.feed(rest[:size])
        rest = rest[size:]
        if not rest:
            break
    assert search.usage == (Usage(100, 5, 64) if text is BODY else Usage(50, 3, 16))


@pytest.mark.parametrize("size", [1 << 14, 1 << 16, 1 << 20])
def test_an_event_too_large_to_keep(size: int) -> None:
    answer = {
        "type": "response.completed",
        "response": {
            "output": ["x" * 100] * (LARGEST // 50),
            "usage": {"input_tokens": 50, "output_tokens": 3},
            "tools": [TOOLS] * 5_000,
        },
    }
    text = sse(answer, "response.completed") + TOKEN
    scanner = Scanner(Form.RESPONSES, b"")
    events = [
        event for at in range(0, len(text), size) for event in scanner.scan(text[at : at + size])
    ]
    assert (scanner.ended, scanner.usage) == (True, Usage(50, 3, -1))
    assert sum(size for _, size in events) == len(text)
