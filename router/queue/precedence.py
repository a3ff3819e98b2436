"""Placing a request by what is before it: what waits with a lower priority is not.

All that waits is charged to its replica's load, so that what comes later is spread evenly. To one
of better priority these charges say nothing: it is sent before them all. It is shown the loads
without them, and so finds the replica that is free first.
"""

from __future__ import annotations

from collections.abc import Sequence

from router.queue.gate import Gate
from router.queue.ticket import LOW, Ticket
from router.scheduling.placer import Placement
from router.types import Load


def place(
    ticket: Ticket, eligible: int, gates: Sequence[Gate], loads: Sequence[Load], now: float
) -> Placement | None:
    """As ``Owner.place``. A request of a session in progress sees all: it stays where its history
    is, since what one gains that moves, others lose to its prefill."""
    owner, priority = ticket.owner, ticket.lane_priority
    if priority >= LOW or ticket.goes_on:
        return owner.place(eligible, now)
    aside = [
        (loads[gate.slot], behind)
        for gate in gates
        if (gate.lane.size or gate.others_waiting) and (behind := gate.behind(priority))[1]
    ]
    for load, (requests, uncached, tokens) in aside:
        set_aside(load, requests, uncached, tokens)
    try:
        return owner.place(eligible, now)
    finally:
        for load, (requests, uncached, tokens) in aside:
            set_aside(load, -requests, -uncached, -tokens)


def set_aside(load: Load, requests: int, uncached: float, tokens: float) -> None:
    """Leave out requests that wait and would not be before the one that is placed now. To be taken
    back with the same numbers, negative, once it is."""
    load.queued_tokens -= uncached
    load.in_flight -= requests
    load.context_tokens -= tokens
    load.kv_tokens -= uncached
    load.busy_until -= uncached / load.prefill_rate
