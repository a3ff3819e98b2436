"""A prompt that another replica prefills than the one that the data plane is told.

The data plane sends a request to one replica. Where a sidecar stands before that one, as in llm-d,
a header tells it who prefills first: the sidecar runs both legs. The picker sees no more of the
first one than that it is over once a token has come.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from router.disaggregation.disaggregation import Leg
from router.http import first_leg

if TYPE_CHECKING:
    from router.disaggregation.disaggregation import Disaggregation
    from router.http.first_leg import Placed
    from router.scheduling.placer import Placement


class PickedLeg:
    """What the books keep of it."""

    __slots__ = ("held_tokens", "placement")

    used: Final = True
    cached_tokens: Final = -1
    """The prefill replica does not tell the picker."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        """On the replica that prefills."""
        self.held_tokens = placement.held_tokens

    def attempt_failed(self, _: str) -> None:
        """The sidecar of whoever answers in its place has the same header."""

    def over(self) -> None:
        """The prefill is done, or nobody waits for it."""
        self.placement.finished(monotonic())


def picked(pick: Placed, apart: Disaggregation) -> PickedLeg | None:
    """The prefill of a request on another replica, charged there; None where there is none."""
    now = monotonic()
    found = first_leg.chosen(pick, apart, now)
    if found is None or pick.prompt is None:
        return None
    choice, _ = found
    gateway = pick.gateway
    if pick.ticket is not None:
        gateway.queue.queue.relieve(pick.ticket, now)
    replica = gateway.fleet.replicas[choice.slot]
    assert replica is not None
    apart.counts[Leg.HANDED_OVER] += 1
    apart.moved_tokens += choice.moved
    pick.record.prefill_replica = replica.name
    return PickedLeg(gateway.placer.place(pick.prompt, 1 << choice.slot, now))
