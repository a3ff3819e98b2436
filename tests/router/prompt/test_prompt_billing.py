"""The billing line that is blanked for engines which would render it."""

from __future__ import annotations

import json

import pytest

from router.prompt.billing import without_billing

LINE = "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch=a1b2c;"


def body(system: object, said: str = "hi") -> bytes:
    messages = [{"role": "user", "content": said}]
    return json.dumps({"model": "m", "messages": messages, "system": system}).encode()


@pytest.mark.parametrize("rest", ["", "\nYou are Claude Code."])
@pytest.mark.parametrize("blocks", [True, False])
def test_two_requests_are_the_same_without_what_the_line_says(rest: str, blocks: bool) -> None:
    found = []
    for line in (LINE, LINE.replace("a1b2c", "99999").replace("3a3", "fff")):
        text = line + rest
        system = [{"type": "text", "text": text}, {"type": "text", "text": "more"}]
        given = body(system if blocks else text)
        blank = without_billing(given)
        assert len(blank) == len(given)
        found.append(blank)
    assert found[0] == found[1]
    kept = json.loads(found[0])["system"]
    text = kept[0]["text"] if blocks else kept
    assert text.rstrip(" ") == "x-anthropic-billing-header:" + rest or text.endswith(rest)
    assert b"cch" not in found[0]
    assert without_billing(found[0]) == found[0]


@pytest.mark.parametrize(
    "given",
    [
        body("plain"),
        body("plain", LINE),  # a user's own words
        body([{"type": "text", "text": "x" * 300}, {"type": "text", "text": LINE}]),
        b'{"system": "x-anthropic-billing-header: cch=1',
        b'["x-anthropic-billing-header: cch=1"]',
        b'"x-anthropic-billing-header\xff"',
        b"",
    ],
)
def test_nothing_else_is_touched(given: bytes) -> None:
    assert without_billing(given) is given
