"""From values to places on a chart, and which values get a tick."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec


class Scale(msgspec.Struct, frozen=True):
    """Values low..high onto pixels start..end, evenly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value; values outside are put at the edge."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def even(low: float, high: float, start: float, end: float, about: int = 5) -> Scale:
    """An even scale whose ticks are 1, 2 or 5 times a power of ten apart; it ends at a tick."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def inside(high: float, start: float, end: float) -> Scale:
    """An even scale from 0 that ends at high itself, its last tick before or there."""
    whole = even(0.0, high, start, end)
    high = high if high > 0 else whole.high
    ticks = tuple(tick for tick in whole.ticks if tick <= high * 1.0001)
    return Scale(0.0, high, start, end, ticks)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale around the values above 0; ticks are 1, 2 or 5 times powers of ten,
    and finer ones where those would be fewer than four. It spans at least a factor of two, so that
    small differences look small."""
    above = [value for value in values if value > 0] or [1.0, 10.0]
    low, high = min(above), max(above)
    ladder = _ladder(low, high, (1, 2, 5))
    bottom = max(tick for tick in ladder if tick <= low * 1.0001)
    top = min(tick for tick in ladder if tick >= high * 0.9999 and tick > bottom)
    ticks = [tick for tick in ladder if bottom <= tick <= top]
    if len(ticks) < 4:
        finer = _ladder(low, high, (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9))
        ticks = [tick for tick in finer if bottom <= tick <= top]
    if len(ticks) > 8:
        tens = [tick for tick in ticks if math.log10(tick) % 1 < 1e-9]
        ticks = tens if len(tens) > 1 else ticks[:: len(ticks) // 6 + 1]
    return Scale(bottom, top, start, end, tuple(ticks), logarithmic=True)


def _ladder(low: float, high: float, factors: Sequence[float]) -> list[float]:
    """Factors of powers of ten, from below low to above high."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    return [factor * 10.0**power for power in powers for factor in factors]


def short(value: float) -> str:
    """A number as the short text of a tick."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}" if size >= 0.01 or not size else f"{value:.1e}"
