"""What images, sounds and films weigh: as many tokens as the engine said that they have."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from router.index import ByteIndex
from router.policies import load_policy
from router.prompt import PARSERS, Prompt
from router.prompt.spans import SPANS
from router.scheduling.placer import Placer
from router.types import Load

IMAGE_TOKENS = 1_500
BYTES_PER_TOKEN = 5.0
URL = {"url": "https://example.com/%s.png"}


def chat(text: str, *images: str) -> Prompt:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name}"}}
        for name in images
    ]
    content = [*parts, {"type": "text", "text": text}] if parts else text
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return PARSERS["/v1/chat/completions"](json.dumps(body).encode())


def parts_of(text: str, *images: str) -> Prompt:
    """The pictures behind the text."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    content += [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{name}"}}
        for name in images
    ]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return PARSERS["/v1/chat/completions"](json.dumps(body).encode())


def tokens_of(prompt: Prompt) -> int:
    """As the engine counts."""
    media = len(prompt.media)
    text = prompt.size - media * 2048
    return int(text / BYTES_PER_TOKEN) + media * IMAGE_TOKENS


def make_placer(replicas: int = 2) -> Placer:
    index = ByteIndex(SPANS)
    for slot in range(replicas):
        index.add_replica(slot, 1 << 40)
    policy = load_policy("cache_aware", seed=1)
    policy.members({slot: str(slot) for slot in range(replicas)})
    return Placer(index, policy, [Load() for _ in range(replicas)])


def answer(placer: Placer, prompt: Prompt, now: float) -> float:
    """Send one and have it answered. Returns the tokens that were expected of it."""
    placement = placer.place(prompt, 0b11, now)
    placement.first_token(now + 0.1)
    placement.finished(now + 0.2, tokens_of(prompt), 10, 0)
    return placement.tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": URL}]}]},
        ),
        (
            "/v1/messages",
            {
                "max_tokens": 1,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", **URL}}],
                    }
                ],
            },
        ),
        (
            "/v1/responses",
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "image_url": "https://x"}]}
                ]
            },
        ),
    ],
)
def test_every_api_tells_how_many_there_are(path: str, body: dict[str, Any]) -> None:
    assert PARSERS[path](json.dumps({"model": "m", **body}).encode()).media
    assert not chat("no picture").media


def test_their_tokens_are_learned_and_the_texts_ratio_is_not_spoilt() -> None:
    rng = random.Random(1)
    placer = make_placer()
    for number in range(200):
        answer(placer, chat(f"{number} " + "word " * rng.randrange(200, 2000)), float(number))
    ratio = placer.models["m"].bytes_per_token
    assert ratio == pytest.approx(BYTES_PER_TOKEN, rel=0.05)
    for number in range(30):
        images = [f"{number}{each}" for each in range(rng.randrange(1, 4))]
        text = f"{number} " + "word " * rng.randrange(10, 400)
        expected = answer(placer, chat(text, *images), 300.0 + number)
    last = chat(text, *images)
    assert expected == pytest.approx(tokens_of(last), rel=0.1)
    assert placer.estimate(last) == pytest.approx(tokens_of(last), rel=0.1)
    assert placer.models["m"].bytes_per_token == ratio


def test_a_long_text_teaches_nothing_of_its_picture() -> None:
    placer = make_placer()
    prompt = chat("word " * 20_000, "a")
    placer.learn_model(prompt, 40_000, 0)
    assert placer.models["m"].media_tokens == 512.0


def test_a_picture_behind_a_text_that_is_held_is_all_to_compute() -> None:
    placer = make_placer()
    for number in range(20):
        answer(placer, chat("word " * number), float(number))
    for number in range(20):
        answer(placer, chat(f"{number}", f"image {number}"), 20.0 + number)
    text = "what is this? " * 600
    answer(placer, parts_of(text), 50.0)
    prompt = parts_of(text, "new")
    assert placer.uncached(prompt) == pytest.approx(IMAGE_TOKENS, rel=0.1)
    placement = placer.place(prompt, 0b11, 60.0)
    assert placement.uncached == pytest.approx(IMAGE_TOKENS, rel=0.1)


def test_a_model_that_only_sees_pictures_is_learned_too() -> None:
    rng = random.Random(2)
    placer = make_placer()
    for number in range(100):
        prompt = chat("word " * rng.randrange(10, 1600), f"image {number}")
        expected = answer(placer, prompt, float(number))
    assert expected == pytest.approx(tokens_of(prompt), rel=0.25)


def test_what_is_held_has_its_pictures_tokens() -> None:
    placer = make_placer()
    for number in range(30):
        answer(placer, chat(f"{number}", f"image {number}"), float(number))
    first = chat("what is this? " * 50, "again")
    answer(placer, first, 50.0)
    placement = placer.place(chat("what is this? " * 50, "again"), 0b11, 60.0)
    assert placement.held_tokens == pytest.approx(tokens_of(first), rel=0.15)
    assert placement.uncached < 0.15 * tokens_of(first)
