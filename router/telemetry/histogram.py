"""Histograms as lists of plain counts."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final

import msgspec

TTFT_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0,
    1.5, 2.5, 4.0, 6.0, 10.0, 15.0, 25.0, 40.0, 60.0, 120.0,
)  # fmt: skip
"""Seconds. Steps of about 1.6: a cached prefix answers in tens of milliseconds, a queue in tens of
seconds."""

DURATION_BUCKETS: Final = (
    0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 7.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1800.0,
)  # fmt: skip
"""Seconds: from an embedding to a long answer of a reasoning model."""

TPOT_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04,
    0.05, 0.06, 0.075, 0.1, 0.15, 0.25, 0.4, 0.75, 1.0, 2.5,
)  # fmt: skip
"""Seconds: from a small model alone to a batch that does not fit."""

OVERHEAD_BUCKETS: Final = (
    25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6,
    1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 100e-3,
)  # fmt: skip
"""Seconds: from a short prompt's routing to a loop that something blocked."""

LOOP_DELAY_BUCKETS: Final = (
    1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5,
)  # fmt: skip
"""Seconds: from a loop at rest to one that something blocked."""

WAIT_ERROR_BUCKETS: Final = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0)
"""Ratios: from a wait far shorter than expected to one far longer."""


class Histogram(msgspec.Struct):
    """Counts by upper bound. To observe is inlined where it is hot: the two lines of `observe`."""

    bounds: tuple[float, ...]
    """Ascending upper bounds, each inclusive; what is above the last goes to one more count."""
    counts: list[int]
    sum: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Histogram:
        """Make an empty histogram with these bounds."""
        return cls(bounds, [0] * (len(bounds) + 1))

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[int]:
        """Observations at most each bound, and all of them last."""
        return list(accumulate(self.counts))
