"""Request bodies of a size, shaped like an agent's: shared tools and system prompt, a history that differs."""

from __future__ import annotations

import json
import random

WORDS = (
    "the agent reads a file and finds that its test fails because a path was wrong so it opens the "
    "next one searches for the name runs the command again looks at what changed and writes down why"
).split()


def text(rng: random.Random, size: int) -> str:
    """Words and line ends of about `size` bytes."""
    out: list[str] = []
    length = 0
    while length < size:
        word = rng.choice(WORDS) + ("\n" if rng.random() < 0.05 else "")
        out.append(word)
        length += len(word) + 1
    return " ".join(out)[:size]


def bodies(
    size: int, count: int, *, stream: bool = False, answer: int = 100, seed: int = 1
) -> list[bytes]:
    """count bodies of about size bytes; half of each is shared by a third of them.

    answer: tokens, which is how many chunks a stream has.
    """
    rng = random.Random(seed)
    shared = [text(rng, size // 2) for _ in range(3)]
    made = []
    for number in range(count):
        messages = [{"role": "system", "content": shared[number % 3]}]
        left = size - size // 2 - 200
        while left > 0:
            turn = min(left, max(800, size // 40))
            role = "user" if len(messages) % 2 else "assistant"
            messages.append({"role": role, "content": text(rng, turn)})
            left -= turn + 40
        body: dict[str, object] = {"model": "m"}
        if stream:
            body["stream"] = True
        body["max_tokens"] = answer
        body["messages"] = messages
        made.append(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())
    return made
