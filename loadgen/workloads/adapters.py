"""A workload whose requests ask for one of many LoRA adapters."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.draw import Zipf, around, rng, segment
from loadgen.workloads.types import Count, Exponent, Role, Session, Step, Tokens


class Adapters(msgspec.Struct, frozen=True, kw_only=True):
    """One request each: an adapter by Zipf's law, its own system prompt, and a question."""

    name: str = "adapters"
    adapters: Count = 24
    zipf: Exponent = 0.9
    system_tokens: Tokens = 600
    question_tokens: Tokens = 300
    output_tokens: Tokens = 120
    prefix: str = "adapter-"
    """What the adapters' names begin with; a number from 0 follows."""

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        systems = [segment(random, self.system_tokens, Role.SYSTEM) for _ in range(self.adapters)]
        popular = Zipf(self.adapters, self.zipf)
        number = 0
        while True:
            chosen = popular.draw(random)
            question = segment(random, around(random, self.question_tokens, 0.6, 8, 4000))
            output = around(random, self.output_tokens, 0.5, 8, 1000)
            answer = segment(random, output, Role.ASSISTANT)
            step = Step((systems[chosen], question), answer, adapter=f"{self.prefix}{chosen}")
            yield Session(number, (step,))
            number += 1
