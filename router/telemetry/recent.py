"""Rates of the last minutes, from samples of the counters rather than work for each request."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from router.telemetry.histogram import TTFT_BUCKETS
from router.telemetry.ledger import Ledger
from router.telemetry.telemetry import Telemetry

SAMPLE_INTERVAL_S = 10.0
"""Seconds between samples."""


class Recent:
    """Ledger sums at regular times, over a window."""

    def __init__(self, seconds: float = 300.0) -> None:
        self.seconds = seconds
        # One more sample than intervals, so that the oldest is a whole window ago.
        self._samples: deque[Mapping[str, tuple[int, int]]] = deque(
            maxlen=int(seconds / SAMPLE_INTERVAL_S) + 1
        )

    def sample(self, ledgers: Mapping[str, Ledger]) -> None:
        """Call every `SAMPLE_INTERVAL_S` seconds with the sums by replica."""
        self._samples.append(
            {name: (ledger.prompt, ledger.delivered) for name, ledger in ledgers.items()}
        )

    def hit_rate(self, name: str, ledger: Ledger | None) -> float | None:
        """Share of prompt tokens delivered since the oldest sample; None when there was no prompt.

        ledger: the replica's sums now, None when it has none.
        """
        if ledger is None:
            return None
        prompt, delivered = self._samples[0].get(name, (0, 0)) if self._samples else (0, 0)
        since = ledger.prompt - prompt
        return (ledger.delivered - delivered) / since if since > 0 else None


class Answers(msgspec.Struct, frozen=True):
    """How a replica's requests went: counts since some time."""

    requests: int = 0
    errors: int = 0
    """Requests whose outcome is not ok, as in warmroute_request_errors_total."""
    ttft: tuple[int, ...] = (0,) * (len(TTFT_BUCKETS) + 1)
    """Times to the first token, by `TTFT_BUCKETS`."""

    def since(self, before: Answers) -> Answers:
        """What has come since an earlier count."""
        return Answers(
            self.requests - before.requests,
            self.errors - before.errors,
            tuple(map(int.__sub__, self.ttft, before.ttft)),
        )

    def ttft_at(self, share: float) -> float | None:
        """The time within which this share of first tokens came, in seconds, interpolated within
        its bucket as Prometheus does; None when there was none."""
        wanted = share * sum(self.ttft)
        if not wanted:
            return None
        below, low = 0, 0.0
        for high, number in zip(TTFT_BUCKETS, self.ttft, strict=False):
            if below + number >= wanted:
                return low + (high - low) * (wanted - below) / number
            below, low = below + number, high
        return low


NO_ANSWERS = Answers()


def answers(telemetry: Telemetry) -> dict[str, Answers]:
    """Replica's name -> its answers since the start."""
    requests: dict[str, int] = {}
    errors: dict[str, int] = {}
    for row in telemetry.rows():
        name = row.series.replica
        requests[name] = requests.get(name, 0) + sum(row.codes.values())
        errors[name] = errors.get(name, 0) + sum(row.errors.values())
    times: dict[str, list[int]] = {}
    for series in telemetry.series():
        sums = times.setdefault(series.replica, [0] * len(series.ttft.counts))
        for place, number in enumerate(series.ttft.counts):
            sums[place] += number
    return {
        name: Answers(number, errors[name], tuple(times[name])) for name, number in requests.items()
    }


class RecentAnswers:
    """Samples of `answers` over the last minute."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._samples: deque[tuple[float, Mapping[str, Answers]]] = deque(
            maxlen=int(seconds / SAMPLE_INTERVAL_S) + 1
        )

    def sample(self, now: float, found: Mapping[str, Answers]) -> None:
        """Call every `SAMPLE_INTERVAL_S` seconds. now: monotonic seconds."""
        self._samples.append((now, found))

    def of(self, name: str, now: float, total: Answers) -> tuple[float, Answers]:
        """Seconds since the oldest sample, and the replica's answers in them."""
        if not self._samples:
            return 0.0, total
        when, found = self._samples[0]
        before = found.get(name, NO_ANSWERS)
        # Its series may have been dropped and begun again.
        return now - when, total.since(before) if total.requests >= before.requests else total
