"""What is learned from finished requests: a replica's prefill speed, a model's token sizes and
answers."""

from __future__ import annotations

import math

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


class SpeedLearner:
    """Prefill tokens a second of one replica, from requests that did not wait behind other
    prefills.

    Tracks a quantile of log2(speed) with a step that shrinks while warming up, then stays at
    3%, and publishes it to `load.prefill_rate` in steps, with hysteresis.
    """

    __slots__ = ("_level", "_samples", "_step", "load")

    def __init__(self, load: Load) -> None:
        self.load = load
        self._level = math.log2(load.prefill_rate)
        self._samples = 0
        self._step = round(self._level * STEPS_PER_DOUBLING)

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
            if abs(exact - self._step) > 0.75:
                self._step = round(exact)
                self.load.prefill_rate = 2.0 ** (self._step / STEPS_PER_DOUBLING)


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
