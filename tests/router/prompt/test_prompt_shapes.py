"""No body costs much more than others of its size."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from router.prompt import PARSERS, PromptError
from router.prompt.content import MEDIA_BYTES, MOST_MEDIA
from router.prompt.spans import SPANS

SIZE = 1 << 19
CHAT = "/v1/chat/completions"


def filled(unit: bytes) -> bytes:
    return b",".join([unit] * (SIZE // (len(unit) + 1)))


def cost(path: str, body: bytes) -> float:
    start = time.process_time()
    with contextlib.suppress(PromptError):
        PARSERS[path](body)
    return time.process_time() - start


@pytest.mark.parametrize(
    "unit", [b"1", b"null", b"{}", b'""', b'{"image_url":1}', b"[1]", b'{"a":1}']
)
def test_odd_elements(unit: bytes) -> None:
    """They were 30 to 60 times an ordinary body's cost, with an exception or two for each."""
    usual = b'{"role":"user","content":"a sentence of ten words or so"}'
    ordinary = min(cost(CHAT, b'{"messages":[%b]}' % filled(usual)) for _ in range(3))
    many = filled(unit)
    part = b'{"messages":[{"role":"user","content":[%b]}]}'
    for path, form in (
        (CHAT, b'{"messages":[%b]}'),
        (CHAT, part),
        (CHAT, b'{"messages":[{"role":"assistant","tool_calls":[%b]}]}'),
        ("/v1/messages", part),
        ("/v1/responses", b'{"input":[%b]}'),
        ("/v1/completions", b'{"prompt":[%b]}'),
    ):
        # The least of a few, each with other bytes, as what was seen before costs less.
        bodies = [form % (many + b" " * number) for number in range(3)]
        assert min(cost(path, body) for body in bodies) < 12 * ordinary + 0.005, (path, form)


def test_template_arguments_that_are_no_use_cost_nothing() -> None:
    form = b'{"messages":[{"role":"user","content":"hi"}],"chat_template_kwargs":{%b}}'
    fields = b",".join(b'"a%d":1' % number for number in range(SIZE // 12))
    usual = b'"a":"%b"' % (b"x" * len(fields))
    ordinary = min(cost(CHAT, form % usual) for _ in range(5))
    assert min(cost(CHAT, form % fields) for _ in range(5)) < 12 * ordinary + 0.005
    prompt = PARSERS[CHAT](form % fields)
    assert prompt.doubts is not None
    assert sum(map(len, prompt.doubts.unknown)) < 8192


def pictures(count: int, other: int = -1) -> bytes:
    """A body of messages that are a short URL each, one of them another than usual."""
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"a:{number}{number == other}"}}
            ],
        }
        for number in range(count)
    ]
    return json.dumps({"model": "m", "messages": messages}).encode()


def test_many_pictures_weigh_not_much_more_than_their_body() -> None:
    """Each weighed two thousand bytes, whatever its length: a large body weighed gigabytes."""
    parse = PARSERS[CHAT]
    body = pictures(4000)
    many = parse(body)
    weight = MOST_MEDIA * MEDIA_BYTES
    assert parse(pictures(1)).size > MEDIA_BYTES
    assert weight < many.size < weight + len(body)
    # What comes later changes no weight.
    assert parse(pictures(5000)).chain[: len(many.chain)] == many.chain
    # Each is told from others all the same.
    other = parse(pictures(4000, other=3000))
    depth = [one == two for one, two in zip(many.chain, other.chain, strict=True)].index(False)
    assert weight < SPANS[depth + 1] < many.size
