"""Who leaves when the fleet is over: the coldest first, and of those as cold the cheapest.

When a request would have its first token too late, or as many wait as may, it need not be the one
that leaves for an overflow target. Of those that wait for the same and have its priority, it is the
one that loses least here, and costs least there:

    the least share of its prompt cached here, in tenths; then the least money; then who came last

Where half of a prompt is cached here, it is warm: it leaves only where it would be refused, and so
does what goes on with a session in progress. Kept in a heap for each place to wait: who leaves is
found in logarithmic time.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

import msgspec

from router.queue.ticket import Ticket

WARM: Final = 5
"""Tenths of a prompt that are cached here, from which on it does not leave unless it must."""
MOST_AT_ONCE: Final = 8
"""Requests that leave for one, or cannot: it must not keep the others waiting."""
_SLACK: Final = 32
"""Entries of requests that have left which are not worth clearing."""

Key = tuple[int, float, int]
"""Tenths cached, money, and the number, negative so that who came last goes first."""


class Quote(msgspec.Struct, frozen=True, gc=False):
    """What it takes to answer a request elsewhere."""

    money: float
    tokens: float
    """Of its prompt."""


class Exit(Protocol):
    """The way out of the fleet."""

    def quote(self, ticket: Ticket) -> Quote | None:
        """None where it may not leave, or nobody would take it now."""

    def send(self, ticket: Ticket, why: str) -> bool:
        """Send it out. Whether it goes: the queue has been told (`Queue.left_for_elsewhere`)."""


class _Place:
    """Those of one lane and priority that may leave."""

    __slots__ = ("clear_at", "heap", "lane")

    def __init__(self, lane: object) -> None:
        self.lane = lane
        self.heap: list[tuple[Key, int, Ticket]] = []
        self.clear_at = _SLACK
        """Entries from which on those that wait no more are cleared out."""

    def push(self, key: Key, entry: int, ticket: Ticket) -> None:
        heap, lane = self.heap, self.lane
        heappush(heap, (key, entry, ticket))
        if len(heap) >= self.clear_at:
            heap[:] = [each for each in heap if each[2].lane is lane]
            heapify(heap)
            self.clear_at = 2 * len(heap) + _SLACK

    def first(self, before: Key) -> Ticket | None:
        """Take out the first, where it goes before this."""
        heap = self.heap
        while heap and heap[0][0] < before:
            ticket = heappop(heap)[2]
            if ticket.lane is self.lane and not ticket.goes_on:
                return ticket
        return None

    def is_empty(self) -> bool:
        """Whether nobody waits here; what comes first and waits no more is dropped."""
        heap = self.heap
        while heap and heap[0][2].lane is not self.lane:
            heappop(heap)
        return not heap


class Departures:
    """Those that may leave, by where they wait. Entries of what waits there no more are dropped
    when they come first, or when they are many."""

    def __init__(self, way: Exit) -> None:
        self._exit = way
        self._places: dict[tuple[object, int], _Place] = {}
        """By lane and priority."""
        self._due: list[tuple[float, int, Ticket]] = []
        """A heap of those with an aim, by when it is missed."""
        self._entries = 0

    def joins(self, ticket: Ticket, uncached: float) -> None:
        """It begins to wait in its lane. uncached: prompt tokens that are to be computed here."""
        if ticket.retried or ticket.goes_on:
            return
        key = self._key(ticket, uncached)
        if key is None or key[0] >= WARM:
            return
        self._entries += 1
        where = ticket.lane, ticket.priority
        place = self._places.get(where)
        if place is None:
            place = self._places[where] = _Place(ticket.lane)
        place.push(key, self._entries, ticket)
        if ticket.aim:
            heappush(self._due, (ticket.at + ticket.aim, self._entries, ticket))

    def make_room(
        self, ticket: Ticket, lane: object, uncached: float, why: str, over: Callable[[], bool]
    ) -> bool:
        """Have requests leave until `over` says that it is no more. Whether the ticket itself has
        left. lane: what it would wait in. why: of the ticket's own."""
        own = self._key(ticket, uncached) if over() else None
        if own is None:
            return False  # for what may not leave itself nobody does
        for _ in range(MOST_AT_ONCE):
            if not over():
                break
            place = self._places.get((lane, ticket.priority))
            other = place.first(own) if place is not None else None
            if other is not None:
                self._exit.send(other, "coldest")
            elif own[0] < WARM:
                return self._exit.send(ticket, why)
            else:
                break
        return False

    def tick(self, now: float) -> None:
        """Those that have waited for all of their aim leave."""
        due = self._due
        while due and due[0][0] <= now:
            ticket = heappop(due)[2]
            if ticket.lane is not None and not ticket.goes_on:
                self._exit.send(ticket, "late")
        for where in [where for where, place in self._places.items() if place.is_empty()]:
            del self._places[where]

    def _key(self, ticket: Ticket, uncached: float) -> Key | None:
        quote = self._exit.quote(ticket)
        if quote is None:
            return None
        cached = 1.0 - uncached / quote.tokens if quote.tokens > 0.0 else 0.0
        return int(10.0 * max(cached, 0.0) + 1e-9), quote.money, -ticket.number
