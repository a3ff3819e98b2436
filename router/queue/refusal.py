"""When a first token will come, how far such predictions are off, and when to come again."""

from __future__ import annotations

from math import exp
from random import Random

FORGET = 0.98
"""How much of what was seen of waits counts after one more."""
WORTH_PREDICTING_S = 0.25
"""Predictions of less say more about steps than about waiting."""
OWN_SHARE = 0.25
"""A request may wait for this share of its limit, however long its own prefill takes."""
FLOW_S = 30.0
"""The time over which the door's flow is averaged."""
RETRY_AFTER_SPREAD = 0.5
LONGEST_RETRY_AFTER_S = 60.0


class Calibration:
    """How many times as long as predicted the waits for first tokens are: decoding shares the steps
    with prefills, by how much depends on the load."""

    __slots__ = ("_predicted", "_real", "stretch")

    def __init__(self) -> None:
        self._real = self._predicted = 5.0
        self.stretch = 1.0

    def saw(self, predicted: float, real: float) -> None:
        """A first token came that was predicted later than WORTH_PREDICTING_S."""
        self._real = self._real * FORGET + real
        self._predicted = self._predicted * FORGET + predicted
        self.stretch = max(1.0, self._real / self._predicted)

    def late(self, limit: float, waited: float, wait: float, own: float) -> float:
        """Seconds by which a first token would come too late, if above 0.

        wait: predicted until its own prefill begins. own: predicted for that. A huge prompt is not
        refused for its own size.
        """
        stretch = self.stretch
        return waited + wait * stretch - max(limit - own * stretch, OWN_SHARE * limit)


class Flow:
    """Tokens that pass the door, a second."""

    __slots__ = ("_at", "_rate", "_sum")

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def passed(self, tokens: float, now: float) -> None:
        """A session was let in."""
        self._rate = self.rate(now) + tokens / FLOW_S
        self._at = now

    def rate(self, now: float) -> float:
        """The mean of late."""
        return self._rate * exp((self._at - now) / FLOW_S)


class RetryAfter:
    """When to come again: once there would be room if nothing else came, and not all at once."""

    __slots__ = ("_random",)

    def __init__(self, seed: int | None = None) -> None:
        self._random = Random(seed).random

    def __call__(self, seconds: float) -> float:
        spread = seconds * (1.0 + RETRY_AFTER_SPREAD * self._random())
        return min(max(spread, 1.0), LONGEST_RETRY_AFTER_S)
