"""Tokens against the engine's own, and the doctor against a live engine."""

from __future__ import annotations

import asyncio
import random
from array import array
from typing import Any

import httpx
import msgspec
import pytest

from bench.sessions import TOOL
from router.config import load
from router.doctor.run import diagnose
from router.render.model import RenderModel, find_folder

CONVERSATIONS = 1000
AT_ONCE = 8

_PIECES = (
    *("hello", "the quick brown fox", "don't", "3.14159", "  ", "\n\n", "\t", "\r\n", "ünïcödé"),
    *(
        "数据库",
        "🙂👩‍👩‍👧",
        "e\u0301",
        "{",
        '}"',
        "\\",
        "<|im_end|>",
        "<|im_start|>user\n",
        "</tool_call>",
    ),
    *(
        "<tool_call>",
        "<|endoftext|>",
        "a" * 70,
        "0" * 40,
        "SELECT * FROM t;\n",
        "\u200b",
        "...",
        "'",
    ),
)


class Speaker:
    """Makes conversations up."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self, most: int = 30) -> str:
        rng = self.rng
        space = rng.choice(("", " ", "\n"))
        return space.join(rng.choice(_PIECES) for _ in range(rng.randint(0, most)))

    def content(self) -> str | list[dict[str, str]]:
        if self.rng.random() < 0.2:
            return [{"type": "text", "text": self.text()} for _ in range(self.rng.randint(1, 3))]
        return self.text()

    def arguments(self) -> str:
        tree = {"path": self.text(4), "n": self.rng.random(), "deep": {"list": [1, None, True]}}
        return self.rng.choice((msgspec.json.encode(tree).decode(), "{}", "", "not json", "[1]"))

    def body(self) -> dict[str, Any]:
        rng = self.rng
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.6:
            messages.append({"role": "system", "content": self.content()})
        elif rng.random() < 0.1:
            messages.append({"role": "developer", "content": self.text()})
        for number in range(rng.randint(1, 5)):
            messages.append({"role": "user", "content": self.content()})
            if rng.random() < 0.3:
                function = {"name": "run", "arguments": self.arguments()}
                call = {"id": f"c{number}", "type": "function", "function": function}
                said = rng.choice((None, "", self.text(3)))
                messages.append({"role": "assistant", "content": said, "tool_calls": [call]})
                answer = {"role": "tool", "tool_call_id": f"c{number}", "content": self.content()}
                messages.append(answer)
            messages.append({"role": "assistant", "content": self.text()})
        if rng.random() < 0.7:
            messages.append({"role": "user", "content": self.content()})
        body: dict[str, Any] = {"model": "tiny", "messages": messages}
        if rng.random() < 0.4:
            body["tools"] = [TOOL]
        if rng.random() < 0.2:
            body["add_generation_prompt"] = False
        return body


async def test_tokens_are_the_engines_for_a_thousand_conversations(urls: list[str]) -> None:
    speaker = Speaker(1)
    slots = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(trust_env=False, timeout=600.0) as client:
        cards = (await client.get(urls[0] + "/v1/models")).json()["data"]
        model = RenderModel(find_folder(cards[0]["root"], download=False))

        async def one(body: dict[str, Any]) -> str:
            async with slots:
                answer = await client.post(urls[0] + "/tokenize", json=body)
            assert answer.status_code == 200, answer.text
            ours = array("I", model.encode(model.read("chat", msgspec.json.encode(body))))
            return "" if list(ours) == answer.json()["tokens"] else repr(body)[:500]

        different = await asyncio.gather(*(one(speaker.body()) for _ in range(CONVERSATIONS)))
    assert [body for body in different if body] == []


async def test_the_doctor_finds_nothing_wrong_with_good_engines(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.doctor.events.LISTEN_S", 120.0)
    monkeypatch.setattr("router.doctor.run.TIMEOUT_S", 120.0)
    settings = load({"replicas": list(urls)}).settings
    engines, found = await diagnose(settings)
    assert [engine.trouble for engine in engines] == [""] * len(urls)
    assert [finding for finding in found if finding.wrong] == []


async def test_the_doctor_sees_another_template(urls: list[str], tmp_path: Any) -> None:
    other = tmp_path / "template.jinja"
    other.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    chosen = {"replicas": urls[:1], "exact_chat_template": str(other)}
    _, found = await diagnose(load(chosen).settings)
    assert any("differ from the engine's" in one.what and one.wrong for one in found)
