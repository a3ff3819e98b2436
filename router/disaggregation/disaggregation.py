"""What the router knows of prefill and decode apart: learned speed, and counts of what happened."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from router.disaggregation.choice import Choice, TransferSpeed, choose
from router.disaggregation.connector import Connector
from router.disaggregation.pairs import Pairs
from router.scheduling.placer import Placement
from router.types import PrefixIndex

log = logging.getLogger(__name__)


class Leg:
    """What became of the first leg of a request."""

    HANDED_OVER: Final = "handed_over"
    """The decode replica was told where the blocks are."""
    CHEAPER_LOCAL: Final = "cheaper_local"
    """The decode replica alone was expected to be as fast."""
    NO_PREFILL: Final = "no_prefill_replica"
    """No prefill replica is usable."""
    CANNOT_FETCH: Final = "cannot_fetch"
    """The decode replica has lately failed to fetch from every prefill replica that is usable."""
    UNSUPPORTED: Final = "unsupported"
    """A kind of request that cannot be split: several answers, another path."""
    NO_PARAMS: Final = "no_params"
    """The prefill replica's blocks cannot be handed over: it has no connector, or another one."""
    REFUSED: Final = "refused"
    """The prefill replica answered 4xx; the decode replica tells the client why."""
    FAILED: Final = "failed"
    """A prefill replica did not answer as it should."""
    NOT_LOADED: Final = "not_loaded"
    """The decode replica failed once it was told; it was asked again to prefill by itself."""
    CLIENT_GONE: Final = "client_gone"
    """The client left while a prefill replica computed."""
    RELEASED: Final = "released"
    """The client left between the legs, or the decode replica died; the blocks were fetched by a
    throwaway request."""
    STRANDED: Final = "stranded"
    """Blocks stayed on the prefill replica until its lease ended."""


LEGS: Final = tuple(word for name, word in vars(Leg).items() if name.isupper())
"""Every word of `Leg`."""


class Disaggregation:
    """The shared state of all first legs. Used on the event loop only."""

    def __init__(self, index: PrefixIndex, connector: Connector) -> None:
        self._index = index
        self._alarmed_at = float("-inf")
        self.connector = connector
        self.speed = TransferSpeed()
        self.pairs = Pairs()
        self.counts: Counter[str] = Counter(dict.fromkeys(LEGS, 0))
        """By a word of `Leg`."""
        self.moved_tokens = 0.0
        """Tokens that decode replicas lacked and were told where to fetch."""
        self.prefill_seconds = 0.0
        """Time spent on first legs that were handed over."""

    @property
    def seconds_per_token(self) -> float:
        """The learned time of transfer."""
        return self.speed.seconds_per_token

    def alarm(self, replica: str, why: str, now: float, interval: float) -> None:
        """A prefill replica's blocks cannot be handed over, so that its work is lost. Logged once
        in `interval` seconds."""
        if now - self._alarmed_at >= interval:
            self._alarmed_at = now
            log.warning("replica %s prefills for nobody: it %s", replica, why)

    def emptied(self, slot: int, host: str) -> None:
        """A replica has restarted, or another one has its slot."""
        self.pairs.forget(slot)
        self.connector.forget(host)

    def choose(
        self, decode: Placement, lacks: float, prefilling: int, answering: int, now: float
    ) -> Choice:
        """A prefill replica of these (a mask) for a request that was placed on a replica that lacks
        so many tokens of it. answering: a mask of the replicas that answer clients."""
        return choose(decode, lacks, prefilling, answering, self._index, self.speed, now)
