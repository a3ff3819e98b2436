"""No body costs much more than others of its size."""

from __future__ import annotations

import contextlib
import time

import pytest

from router.prompt import PARSERS, PromptError

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
