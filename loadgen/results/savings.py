"""What reuse is worth: prefill not done, in GPU time and money."""

from __future__ import annotations

import msgspec

from loadgen.results.schema import Arm, Savings


class Price(msgspec.Struct, frozen=True):
    """What turns tokens into GPU time and money."""

    prefill_rate: float = 20_000.0
    """Prompt tokens a second one replica computes."""
    gpus: int = 1
    """The number of GPUs in one replica."""
    gpu_hour: float | None = None
    """Price of one GPU for an hour, in any currency."""


def savings(base: Arm, arm: Arm, price: Price) -> Savings | None:
    """Prompt tokens that arm did not compute and base would have, over arm's own prompt tokens.

    Negative when arm reused less. None when the engines did not report reuse."""
    if base.hit_rate is None or arm.hit_rate is None:
        return None
    saved = (arm.hit_rate - base.hit_rate) * arm.prompt_tokens
    gpu_seconds = saved / price.prefill_rate * price.gpus
    money = None if price.gpu_hour is None else gpu_seconds / 3600 * price.gpu_hour
    million = None if money is None or not arm.completed else money / arm.completed * 1e6
    return Savings(saved, gpu_seconds, money, million)
