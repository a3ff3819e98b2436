"""The counters behind the metrics: plain numbers, found by one dict lookup a request."""

from __future__ import annotations

import msgspec

from router.telemetry.histogram import DURATION_BUCKETS, TTFT_BUCKETS, Histogram
from router.telemetry.ledger import Ledger


class Series(msgspec.Struct):
    """What is counted for each replica and model."""

    replica: str
    model: str
    labels: str
    """``replica="...",model="..."``, escaped for the text format."""
    ttft: Histogram
    duration: Histogram
    ledger: Ledger
    prompt_tokens: int = 0
    output_tokens: int = 0

    @classmethod
    def empty(cls, replica: str, model: str) -> Series:
        return cls(
            replica,
            model,
            f'replica="{escape(replica)}",model="{escape(model)}"',
            Histogram.over(TTFT_BUCKETS),
            Histogram.over(DURATION_BUCKETS),
            Ledger(),
        )


class Row(msgspec.Struct):
    """What is counted for each replica, model and API family."""

    series: Series
    labels: str
    codes: dict[int, int]
    """HTTP status -> requests; 0 when no answer was sent."""
    errors: dict[str, int]
    """Outcome -> requests, for outcomes that are not ok."""


def escape(value: str) -> str:
    """A label value for the Prometheus text format."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
