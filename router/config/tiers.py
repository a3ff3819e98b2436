"""Kinds of settings about the tiers of a KV cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from router.config.kinds import Kind

_MEDIUM = re.compile(r"[A-Z0-9][A-Z0-9._-]{0,62}")
GPU = "GPU"


def _items(text: str) -> list[str]:
    return [item for item in re.split(r"[,\s]+", text.upper()) if item]


@dataclass(frozen=True)
class Media(Kind):
    """Names of media as KV events have them, separated by commas or white space, in capitals."""

    placeholder = "MEDIUM"

    def parse(self, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(_items(text)))
        for name in names:
            if not _MEDIUM.fullmatch(name) or name == GPU:
                raise self.refuse(name, "not the name of a medium behind the GPU")
        return names

    def format(self, value: Sequence[str]) -> str:
        return ",".join(value)

    def describe(self) -> str:
        return "media such as CPU, DISK or STORAGE, separated by commas"

    def brief(self) -> str:
        return "list of media"


@dataclass(frozen=True)
class TierRates(Kind):
    """MEDIUM=RATE, separated by commas or white space: tokens a second that are loaded from it."""

    placeholder = "MEDIUM=RATE"

    def parse(self, text: str) -> tuple[tuple[str, float], ...]:
        rates: dict[str, float] = {}
        for item in _items(text):
            medium, equals, rate = item.partition("=")
            if not equals or not _MEDIUM.fullmatch(medium) or medium == GPU:
                raise self.refuse(item, "not MEDIUM=RATE with a medium behind the GPU")
            if not re.fullmatch(r"[0-9]{1,9}", rate) or not int(rate):
                raise self.refuse(item, "not a rate in whole tokens a second, 1 or more")
            rates[medium] = float(rate)
        return tuple(rates.items())

    def format(self, value: Sequence[tuple[str, float]]) -> str:
        return ",".join(f"{medium}={rate:.0f}" for medium, rate in value)

    def describe(self) -> str:
        return "tokens a second by medium, such as CPU=200000,STORAGE=20000"

    def brief(self) -> str:
        return "list of MEDIUM=RATE"
