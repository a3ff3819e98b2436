"""Hit rates of the last minutes, from samples of the ledger rather than work for each request."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from router.telemetry.ledger import Ledger

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
