"""Whether a prompt is prefilled on another replica than the one that decodes it, and on which.

All costs are seconds. On the decode replica D itself::

    wait(D) + u(D) / P(D) * (1 + STALL * n(D))

with u the uncached tokens, P the prefill speed, and n the requests in flight there, which a prefill
slows down. On a prefill replica and D together::

    wait(P) + u(P) / P(P) * (1 + STALL * n(P)) + HANDSHAKE + moved * s

where n(P) counts on replicas that answer clients as well: one that only prefills has nobody who
decodes. With moved the tokens that D lacks and s the learned seconds a token of transfer. The
cheaper one wins; no threshold of tokens is set.
"""

from __future__ import annotations

from typing import Final

import msgspec

from router.scheduling.placer import Placement
from router.types import PrefixIndex, slots

STALL: Final = 0.5
"""Of a prefill's time, what each request that decodes beside it loses. A guess: vLLM mixes chunks
of a prefill into decode steps."""
HANDSHAKE_SECONDS: Final = 0.004
"""What the second leg adds by itself: one more request and its first step."""
TRANSFER_GUESS: Final = 5e-6
"""Seconds a token until transfers were seen: 128 KiB a token at 25 GB/s."""
_WEIGHT: Final = 0.2
"""Of a new transfer in the learned speed."""
_MOST_TIMES: Final = 4.0
"""What a transfer counts for at most, in times of what was learned before. The first one between
two engines takes seconds, since they get to know each other, and must not end splitting."""
_FORGET: Final = 0.01
"""Of the learned speed's distance from the guess, for each request that would have been split but
for it. What is not tried is not learned: without this a network that was slow once stays so."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The prefill replica for a request, or why there is none."""

    slot: int
    """-1: the decode replica prefills by itself."""
    local: float
    """Seconds on the decode replica alone."""
    remote: float
    """Seconds with the best prefill replica; infinite where there is none."""
    moved: float
    """Tokens that the decode replica lacks."""


class TransferSpeed:
    """Seconds a token of transfer, learned from what passes between the legs."""

    __slots__ = ("seconds_per_token",)

    def __init__(self) -> None:
        self.seconds_per_token = TRANSFER_GUESS

    def saw(self, tokens: float, seconds: float) -> None:
        """A first token came so long after a decode replica was told where these tokens are."""
        if tokens >= 1.0 and seconds > 0.0:
            seen = max(0.0, seconds - HANDSHAKE_SECONDS) / tokens
            seen = min(seen, _MOST_TIMES * max(TRANSFER_GUESS, self.seconds_per_token))
            self.seconds_per_token += _WEIGHT * (seen - self.seconds_per_token)

    def too_dear(self) -> None:
        """A request was not split, and would have been at no cost of transfer."""
        if self.seconds_per_token > TRANSFER_GUESS:
            self.seconds_per_token += _FORGET * (TRANSFER_GUESS - self.seconds_per_token)


def choose(
    decode: Placement,
    lacks: float,
    prefilling: int,
    answering: int,
    index: PrefixIndex,
    speed: TransferSpeed,
    now: float,
) -> Choice:
    """Compare the replica that was chosen to decode, which lacks so many tokens, with each that may
    prefill (a mask). answering: a mask of the replicas that answer clients."""
    load, uncached = decode.load, lacks
    beside = max(0, load.in_flight - 1)  # it is charged itself
    alone = uncached / load.prefill_rate
    local = max(alone, load.busy_until - now) + alone * STALL * beside
    best, least = cheapest(decode, prefilling, answering, index, now)
    remote = least + HANDSHAKE_SECONDS + uncached * speed.seconds_per_token
    if least + HANDSHAKE_SECONDS < local <= remote:
        speed.too_dear()
    return Choice(best if remote < local else -1, local, remote, uncached)


def cheapest(
    decode: Placement, prefilling: int, answering: int, index: PrefixIndex, now: float
) -> tuple[int, float]:
    """The replica of a mask that prefills a request at the least cost, and that cost in seconds; -1
    and infinity for no mask."""
    best, least = -1, float("inf")
    if prefilling:
        loads, scale = decode.placer.loads, decode.tokens / max(1, decode.prompt.size)
        held: dict[int, float] = {}
        for weight, mask in index.match(decode.prompt.chain) if decode.prompt.chain else ():
            for slot in slots(mask & prefilling):
                held.setdefault(slot, weight * scale)
        for slot in slots(prefilling):
            there = loads[slot]
            to_compute = max(1.0, decode.tokens - held.get(slot, 0.0))
            own = to_compute / there.prefill_rate
            cost = max(0.0, there.busy_until - now) + own
            if answering >> slot & 1:
                cost += own * STALL * there.in_flight
            if cost < least:
                best, least = slot, cost
    return best, least
