"""Agents that call tools in a loop, the traffic this gateway is made for.

Each task belongs to an application: a set of tool schemas and a system prompt, drawn by Zipf's law.
Its history grows by an answer and a tool's result at every step. Some tasks are resumed by their
user after a while; some steps start sub-agents, which begin with either the whole history so far (a
fork) or the prompt of another application, and whose results the main agent waits for.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

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
    Share,
    Step,
    Tokens,
)


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and seconds are medians of log-normal draws."""

    name: str = "agent"
    applications: Count = 16
    zipf: Exponent = 1.1
    tool_schemas: Count = 8
    """The number of tool schemas of an application."""
    tool_tokens: Tokens = 250
    system_tokens: Tokens = 1500
    task_tokens: Tokens = 200
    result_tokens: Tokens = 450
    output_tokens: Tokens = 90
    steps: Mean = 8.0
    """Mean steps of one go at a task."""
    most_steps: Count = 40
    tool_pause: Seconds = 1.0
    resumed: Share = 0.15
    """Share of tasks that the user takes up again."""
    resume_pause: Seconds = 30.0
    sub_agents: Share = 0.05
    """Chance that a step starts sub-agents."""
    forked: Share = 0.5
    """Share of sub-agents that start with the whole history."""
    most_tokens: Tokens = 100_000
    """A task ends before a prompt longer than this."""

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        shared = [self._application(random) for _ in range(self.applications)]
        popular = Zipf(self.applications, self.zipf)
        number = 0
        while True:
            yield Session(number, _Task(self, random, shared, popular).steps())
            number += 1

    def _application(self, random: Random) -> Prompt:
        tools = max(1, round(random.uniform(0.5, 1.5) * self.tool_schemas))
        return (
            *(
                segment(random, around(random, self.tool_tokens, 0.5, 40, 2000), Role.TOOLS)
                for _ in range(tools)
            ),
            segment(random, around(random, self.system_tokens, 0.5, 100, 8000), Role.SYSTEM),
        )


class _Task:
    """A session that is being built."""

    def __init__(self, shape: Agent, random: Random, shared: list[Prompt], popular: Zipf) -> None:
        self._shape = shape
        self._random = random
        self._shared = shared
        self._popular = popular
        self._steps: list[Step] = []
        self._threads = 0

    def steps(self) -> tuple[Step, ...]:
        shape, random = self._shape, self._random
        prompt = self._shared[self._popular.draw(random)]
        prompt, after = self._go(prompt, (), 0.0, 0, sub_agents=True)
        if random.random() < shape.resumed:
            pause = seconds(random, shape.resume_pause, 0.7, 10 * shape.resume_pause)
            self._go(prompt, after, pause, 0, sub_agents=False)
        return tuple(self._steps)

    def _go(
        self, prompt: Prompt, after: tuple[int, ...], pause: float, thread: int, *, sub_agents: bool
    ) -> tuple[Prompt, tuple[int, ...]]:
        """A user's task and the loop it starts. Returns the history and the last step."""
        shape, random = self._shape, self._random
        size = sum(part.tokens for part in prompt)
        task = segment(random, around(random, shape.task_tokens, 0.8, 16, 4000))
        news: Prompt = (task,)
        for _ in range(geometric(random, shape.steps, shape.most_steps)):
            size += sum(part.tokens for part in news)
            if size > shape.most_tokens:
                break
            prompt = (*prompt, *news)
            answer = around(random, shape.output_tokens, 0.8, 8, 2000)
            output = segment(random, answer, Role.ASSISTANT)
            step = len(self._steps)
            self._steps.append(Step(prompt, output, after, pause, thread))
            prompt = (*prompt, output)
            size += answer
            result = segment(random, around(random, shape.result_tokens, 1.0, 16, 8000), Role.TOOL)
            after, news = (step,), (result,)
            pause = seconds(random, shape.tool_pause, 0.8, 20 * shape.tool_pause)
            if sub_agents and random.random() < shape.sub_agents:
                after = self._delegate(prompt, step, pause)
                pause = 0.0
        return prompt, after

    def _delegate(self, history: Prompt, step: int, pause: float) -> tuple[int, ...]:
        """Start 1 to 3 sub-agents after a step. Returns their last steps."""
        last: tuple[int, ...] = ()
        for _ in range(self._random.randint(1, 3)):
            self._threads += 1
            if self._random.random() < self._shape.forked:
                prompt = history
            else:
                prompt = self._shared[self._popular.draw(self._random)]
            _, end = self._go(prompt, (step,), pause, self._threads, sub_agents=False)
            last += end
        return last
