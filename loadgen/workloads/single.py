"""Workloads whose sessions are single requests."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Annotated

import msgspec

from loadgen.workloads.draw import Zipf, around, rng, segment
from loadgen.workloads.types import (
    Count,
    Exponent,
    Prompt,
    Role,
    Seconds,
    Segment,
    Session,
    Share,
    Step,
    Tokens,
)


def single(
    random: Random, number: int, prompt: Prompt, output_tokens: int, pause: float = 0.0
) -> Session:
    """One request with an answer of its own."""
    answer = segment(random, output_tokens, Role.ASSISTANT)
    return Session(number, (Step(prompt, answer, pause=pause),))


class SharedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """Groups that share a system prompt, users in them, questions of each user, in random order.

    When every question has been asked, they are asked again (``repeat``) or new ones are."""

    name: str = "shared-prefix"
    groups: Count = 50
    users: Count = 5
    questions: Count = 4
    system_tokens: Tokens = 4000
    user_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """What all questions of one user share after the system prompt."""
    question_tokens: Tokens = 200
    output_tokens: Tokens = 100
    repeat: bool = False

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        prefixes: list[Prompt] = []
        for _ in range(self.groups):
            system = segment(random, self.system_tokens, Role.SYSTEM)
            for _ in range(self.users):
                user = (segment(random, self.user_tokens),) if self.user_tokens else ()
                prefixes.append((system, *user))
        number = 0
        prompts: list[Prompt] = []
        while True:
            if not (prompts and self.repeat):
                prompts = [
                    (*prefix, segment(random, self.question_tokens))
                    for prefix in prefixes
                    for _ in range(self.questions)
                ]
            random.shuffle(prompts)
            for prompt in prompts:
                yield single(random, number, prompt, self.output_tokens)
                number += 1


LADDER = SharedPrefix(
    name="ladder",
    groups=150,
    users=5,
    questions=1,
    system_tokens=6000,
    question_tokens=1200,
    output_tokens=1000,
    repeat=True,
)
"""The shared-prefix benchmark that several gateways publish: 750 prompts, asked again and again."""
LADDER_RATES = (3, 10, 15, 20, 22, 25, 30, 35, 40, 43, 46, 49, 52, 55, 57, 60)
"""Requests a second at which it is usually run."""


class Rag(msgspec.Struct, frozen=True, kw_only=True):
    """A system prompt, a few documents of a corpus by Zipf's law, best first, and a question."""

    name: str = "rag"
    documents: Count = 400
    zipf: Exponent = 0.9
    found: Count = 4
    """The number of documents in one prompt."""
    system_tokens: Tokens = 500
    document_tokens: Tokens = 900
    question_tokens: Tokens = 40
    output_tokens: Tokens = 150

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        system = segment(random, self.system_tokens, Role.SYSTEM)
        corpus = [
            segment(random, around(random, self.document_tokens, 0.4, 100, 4000))
            for _ in range(self.documents)
        ]
        popular = Zipf(self.documents, self.zipf)
        number = 0
        while True:
            best: dict[int, Segment] = {}
            while len(best) < min(self.found, self.documents):
                found = popular.draw(random)
                best[found] = corpus[found]
            question = segment(random, around(random, self.question_tokens, 0.6, 8, 500))
            answer = around(random, self.output_tokens, 0.5, 8, 1000)
            yield single(random, number, (system, *best.values(), question), answer)
            number += 1


class Hot(msgspec.Struct, frozen=True, kw_only=True):
    """One prefix carries most of the traffic; the rest is spread over many others."""

    name: str = "hot"
    share: Share = 0.6
    prefix_tokens: Tokens = 6000
    others: Count = 200
    other_tokens: Tokens = 4000
    question_tokens: Tokens = 200
    output_tokens: Tokens = 100

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        hot = segment(random, self.prefix_tokens, Role.SYSTEM)
        others = [segment(random, self.other_tokens, Role.SYSTEM) for _ in range(self.others)]
        number = 0
        while True:
            prefix = hot if random.random() < self.share else random.choice(others)
            question = segment(random, around(random, self.question_tokens, 0.5, 8, 2000))
            yield single(random, number, (prefix, question), self.output_tokens)
            number += 1


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that come many at a time, each burst with a prefix never seen before."""

    name: str = "burst"
    size: Count = 20
    prefix_tokens: Tokens = 4000
    question_tokens: Tokens = 300
    output_tokens: Tokens = 60
    spread: Seconds = 0.0
    """How long a burst takes to come, its requests at random within that; 0: at the very same
    moment, as no client can send them."""

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return self.size

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        # Of its own, so that a burst is of the same prompts however long it takes.
        moments = rng(seed, f"{self.name} spread")
        number = 0
        while True:
            prefix = segment(random, self.prefix_tokens, Role.SYSTEM)
            for _ in range(self.size):
                question = segment(random, self.question_tokens)
                late = moments.random() * self.spread
                yield single(random, number, (prefix, question), self.output_tokens, late)
                number += 1


class Unique(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to reuse: what a gateway must not make worse."""

    name: str = "unique"
    prompt_tokens: Tokens = 2000
    output_tokens: Tokens = 100

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        number = 0
        while True:
            prompt = (segment(random, around(random, self.prompt_tokens, 0.7, 32, 30_000)),)
            answer = around(random, self.output_tokens, 0.6, 8, 1000)
            yield single(random, number, prompt, answer)
            number += 1
