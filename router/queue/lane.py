"""What waits for one replica, or at the door: by priority, then by tenants' turns, then by arrival.

Leaving from the middle costs no search: what has left is dropped when it comes to the front, or
when more than half of its tenant's entries have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

from router.queue.ticket import Ticket
from router.queue.turns import Turns

SLACK = 32
"""Entries of requests that have left which are not worth clearing."""


class _Line:
    """One tenant's requests of one priority, by arrival."""

    __slots__ = ("heap", "size")

    def __init__(self) -> None:
        self.heap: list[tuple[float, int, Ticket]] = []
        self.size = 0
        """Those that have not left."""


class _Priority:
    """The requests of one priority."""

    __slots__ = ("lines", "order", "prompts", "size", "tokens")

    def __init__(self) -> None:
        self.lines: dict[str, _Line] = {}
        self.order: list[tuple[float, str]] = []
        """Each tenant in `lines` once, by its counter at some earlier time."""
        self.size = 0
        self.tokens = 0.0
        self.prompts = 0.0
        """Tokens of the prompts of those that were placed."""


class Lane:
    """Requests that wait for the same. `cost` tells the tokens of one, the same at its coming
    and leaving."""

    __slots__ = ("_cost", "_priorities", "_turns", "size")

    def __init__(
        self,
        turns: Callable[[int], Turns],
        cost: Callable[[Ticket], float],
    ) -> None:
        self._turns = turns
        self._cost = cost
        self._priorities: dict[int, _Priority] = {}
        self.size = 0

    def push(self, ticket: Ticket) -> None:
        """One more waits."""
        ticket.lane = self
        priority = ticket.lane_priority
        rank = self._priorities.get(priority)
        if rank is None:
            rank = self._priorities[priority] = _Priority()
        line = rank.lines.get(ticket.tenant)
        if line is None:
            line = rank.lines[ticket.tenant] = _Line()
            counter = self._turns(ticket.priority).counter(ticket.tenant)
            heappush(rank.order, (counter, ticket.tenant))
        heappush(line.heap, (ticket.at, ticket.number, ticket))
        line.size += 1
        rank.size += 1
        rank.tokens += self._cost(ticket)
        if ticket.placement is not None:
            rank.prompts += ticket.placement.tokens
        self.size += 1

    def remove(self, ticket: Ticket) -> None:
        """It leaves, from wherever it is."""
        priority = ticket.lane_priority
        rank = self._priorities[priority]
        line = rank.lines[ticket.tenant]
        ticket.lane = None
        self.size -= 1
        if rank.size == 1:
            del self._priorities[priority]
            return
        line.size -= 1
        rank.size -= 1
        rank.tokens -= self._cost(ticket)
        if ticket.placement is not None:
            rank.prompts -= ticket.placement.tokens
        heap = line.heap
        if not line.size:
            heap.clear()
        elif heap[0][2] is ticket:
            heappop(heap)
        elif len(heap) > 2 * line.size + SLACK:
            heap[:] = [entry for entry in heap if entry[2].lane is self]
            heapify(heap)

    def head(self) -> Ticket | None:
        """Whose turn it is."""
        if not self._priorities:
            return None
        rank = self._priorities[min(self._priorities)]
        order, lines = rank.order, rank.lines
        while True:
            then, tenant = order[0]
            line = lines[tenant]
            if not line.size:
                heappop(order)
                del lines[tenant]
                continue
            heap = line.heap
            while heap[0][2].lane is not self:
                heappop(heap)
            ticket = heap[0][2]
            counter = self._turns(ticket.priority).counter(tenant)
            if len(order) == 1 or counter == then:
                return ticket
            heappop(order)
            heappush(order, (counter, tenant))

    def first_priority(self) -> int:
        """The best priority that waits; only where something does."""
        return min(self._priorities)

    def ahead(self, priority: int) -> tuple[int, float]:
        """(requests, tokens) of this priority and better ones."""
        count = 0
        tokens = 0.0
        for each, rank in self._priorities.items():
            if each <= priority:
                count += rank.size
                tokens += rank.tokens
        return count, tokens

    def behind(self, priority: int) -> tuple[int, float, float]:
        """(requests, tokens, tokens of their prompts) of lower priorities than this."""
        count = 0
        tokens = prompts = 0.0
        for each, rank in self._priorities.items():
            if each > priority:
                count += rank.size
                tokens += rank.tokens
                prompts += rank.prompts
        return count, tokens, prompts

    def sizes(self) -> dict[int, tuple[int, float]]:
        """By priority: requests, tokens."""
        return {each: (rank.size, rank.tokens) for each, rank in self._priorities.items()}

    def __iter__(self) -> Iterator[Ticket]:
        """All, in no order. Not to be changed meanwhile."""
        for rank in self._priorities.values():
            for line in rank.lines.values():
                for _, _, ticket in line.heap:
                    if ticket.lane is self:
                        yield ticket
