"""Load that the gateway did not send: what an engine reports beyond the requests of the routers.

Other clients' requests take a replica's time too. What the engine counts beyond our own requests is
added to the replica's Load, and kept here as well, so that it can be taken out again: the books go
on adding and taking away their own part, and never see this one.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.types import Load


@dataclass(slots=True)
class ExternalLoad:
    """One replica's share of Load.in_flight and Load.queued_tokens that is not in the books."""

    requests: int = 0
    tokens: float = 0.0
    _previous: int = 0
    """The load that the last reading showed, whether it was believed or not."""

    def own(self, load: Load) -> int:
        """Requests in flight that this router and its peers know of."""
        return load.in_flight - self.requests

    def observe(
        self, load: Load, running: float, waiting: float, most_own: int, tokens_each: float
    ) -> None:
        """Take in a reading.

        most_own is the most of our own requests in flight while it was taken. A request we just
        sent may not be counted by the engine yet: that makes the excess too small, never less than
        none. One that just ended may still be counted: so an excess is believed only as far as two
        readings in a row show it. tokens_each is what a foreign request is taken to compute.
        """
        total = running + waiting
        excess = max(0, round(total) - max(0, most_own))
        requests = min(excess, self._previous)
        self._previous = excess
        # how many of the waiting ones are foreign is not told: take their share of all
        queued = waiting * requests / total if requests else 0.0
        self._put(load, requests, float(round(queued * tokens_each)))

    def withdraw(self, load: Load) -> None:
        """Nothing is known of it any more: take all of it out of the load."""
        self._previous = 0
        self._put(load, 0, 0.0)

    def _put(self, load: Load, requests: int, tokens: float) -> None:
        load.in_flight += requests - self.requests
        load.queued_tokens = max(0.0, load.queued_tokens + tokens - self.tokens)
        self.requests = requests
        self.tokens = tokens
