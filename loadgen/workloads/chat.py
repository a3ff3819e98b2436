"""Conversations: a system prompt shared by zipf, turns that repeat the whole history."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.draw import Zipf, around, geometric, rng, seconds, segment
from loadgen.workloads.types import (
    Count,
    Exponent,
    Mean,
    Prompt,
    Role,
    Seconds,
    Session,
    Step,
    Tokens,
)


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and seconds are medians of log-normal draws."""

    name: str = "chat"
    system_prompts: Count = 20
    zipf: Exponent = 1.0
    system_tokens: Tokens = 800
    user_tokens: Tokens = 60
    output_tokens: Tokens = 200
    turns: Mean = 5.0
    """The mean number of turns."""
    most_turns: Count = 30
    think: Seconds = 10.0
    """Seconds between an answer and the user's next message."""

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        systems = [
            segment(random, around(random, self.system_tokens, 0.6, 50, 6000), Role.SYSTEM)
            for _ in range(self.system_prompts)
        ]
        popular = Zipf(self.system_prompts, self.zipf)
        number = 0
        while True:
            prompt: Prompt = (systems[popular.draw(random)],)
            steps: list[Step] = []
            for turn in range(geometric(random, self.turns, self.most_turns)):
                asked = segment(random, around(random, self.user_tokens, 1.0, 8, 4000))
                answer = around(random, self.output_tokens, 0.8, 8, 2000)
                output = segment(random, answer, Role.ASSISTANT)
                pause = seconds(random, self.think, 0.8, 20 * self.think) if turn else 0.0
                prompt = (*prompt, asked)
                steps.append(Step(prompt, output, (turn - 1,) if turn else (), pause))
                prompt = (*prompt, output)
            yield Session(number, tuple(steps))
            number += 1
