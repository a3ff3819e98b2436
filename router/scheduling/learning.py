"""What is learned from finished requests: a replica's prefill speed, a model's token sizes and
answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from router.types import Load

MIN_TOKENS = 512.0
"""A prefill shorter than this says more about overheads than about speed."""
MIN_SECONDS = 0.005
QUANTILE = 0.6
"""The speed published is passed by 40% of the samples. What disturbs a sample (decoding beside it,
another router's request before it) makes it too low, so this still errs low, as it should:
believing a replica too fast costs more than believing it too slow."""
STEP = 0.04
"""How far one sample moves the estimate, in doublings: 3%."""
STEPS_PER_DOUBLING = 4
"""Speeds are published in steps of 19%, so that replicas alike look alike and ties between them
stay ties."""
WARM_UP = 8
ALIKE_STEPS = 2
"""Replicas whose speeds are at most so many steps from the median are taken to be alike: 41%."""
PUBLISH_EVERY = 64
"""Samples after which speeds are published anyway, for replicas that have joined."""


class SpeedLearner:
    """Prefill tokens a second of one replica, from requests that did not wait behind other
    prefills.

    Tracks a quantile of log2(speed) with a step that shrinks while warming up, then stays at
    3%, and tells it in steps, with hysteresis.
    """

    __slots__ = ("_level", "_samples", "load", "step")

    def __init__(self, load: Load) -> None:
        self.load = load
        self._level = math.log2(load.prefill_rate)
        self._samples = 0
        self.step = round(self._level * STEPS_PER_DOUBLING)
        """log2 of the speed, in steps."""

    @property
    def ready(self) -> bool:
        """Whether it has seen enough to say something."""
        return self._samples >= WARM_UP

    def saw(self, uncached: float, seconds: float) -> None:
        """A prefill of `uncached` tokens took `seconds` from being sent to its first token."""
        if uncached < MIN_TOKENS or seconds < MIN_SECONDS:
            return
        sample = math.log2(uncached / seconds)
        self._samples += 1
        if self._samples <= WARM_UP:
            self._level += (sample - self._level) / self._samples
        elif sample > self._level:
            self._level += STEP * QUANTILE
        else:
            self._level -= STEP * (1.0 - QUANTILE)
        if self._samples >= WARM_UP:
            exact = self._level * STEPS_PER_DOUBLING
            if abs(exact - self.step) > 0.75:
                self.step = round(exact)


class Speeds:
    """The prefill speeds of a fleet, published to `Load.prefill_rate`.

    Replicas are taken to be as fast as the median of those that are known, unless they are clearly
    not. Were each given its own estimate, the one that happened to seem fastest would get every
    request that is cached nowhere while the fleet has little to do, and the others, not asked,
    would never be known.
    """

    __slots__ = ("_learners", "_loads", "_seen")

    def __init__(self, loads: Sequence[Load]) -> None:
        """loads: by slot, shared with the fleet."""
        self._loads = loads
        self._learners: dict[int, SpeedLearner] = {}
        self._seen = 0

    def saw(self, slot: int, uncached: float, seconds: float) -> None:
        """A prefill on this slot, as `SpeedLearner.saw` has it."""
        load = self._loads[slot]
        learner = self._learners.get(slot)
        if learner is None or learner.load is not load:
            learner = self._learners[slot] = SpeedLearner(load)
        step, ready = learner.step, learner.ready
        learner.saw(uncached, seconds)
        self._seen += 1
        if learner.ready and (not ready or learner.step != step or not self._seen % PUBLISH_EVERY):
            self._publish()

    def _publish(self) -> None:
        loads = self._loads
        known = {
            slot: learner.step
            for slot, learner in self._learners.items()
            if learner.ready and slot < len(loads) and learner.load is loads[slot]
        }
        if not known:
            return
        steps = sorted(known.values())
        usual = steps[len(steps) // 2]
        for slot, load in enumerate(loads):
            step = known.get(slot, usual)
            if abs(step - usual) <= ALIKE_STEPS:
                step = usual
            load.prefill_rate = 2.0 ** (step / STEPS_PER_DOUBLING)


class ModelFacts(msgspec.Struct, gc=False):
    """What a model's finished requests have shown. Both means forget: the last few hundred
    requests count."""

    bytes_per_token: float = 4.0
    """Canonical prompt bytes for each prompt token."""
    output_tokens: float = 256.0
    """Mean length of an answer."""
    _prompt_tokens: float = 2_000.0
    _prompt_bytes: float = 8_000.0
    _answers: float = 1.0

    def saw_prompt(self, size: int, tokens: int) -> None:
        """A prompt of `size` canonical bytes was `tokens` tokens long."""
        seen_tokens = self._prompt_tokens + tokens
        seen_bytes = self._prompt_bytes + size
        if seen_tokens > 1_000_000.0:
            seen_tokens *= 0.5
            seen_bytes *= 0.5
        self._prompt_tokens = seen_tokens
        self._prompt_bytes = seen_bytes
        self.bytes_per_token = seen_bytes / seen_tokens

    def saw_answer(self, tokens: int) -> None:
        """An answer of `tokens` tokens ended."""
        answers = self._answers
        if answers < 256.0:
            self._answers = answers + 1.0
        self.output_tokens += (tokens - self.output_tokens) / (answers + 1.0)
