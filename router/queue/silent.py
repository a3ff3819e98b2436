"""Requests whose answers are no streams: no first token tells when their prefill is done, so the
clock does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from math import inf

from router.queue.ticket import SENT, Ticket


class Silent:
    """Those that were sent, by when their prefill should be done."""

    __slots__ = ("_call", "_wake", "_woken_at", "due")

    def __init__(
        self,
        wake: Callable[[float, Callable[[float], None]], None] | None,
        call: Callable[[float], None],
    ) -> None:
        """wake: has something called at a time. call: is called when one should be done."""
        self._wake = wake
        self._call = call
        self.due: list[tuple[float, int, Ticket]] = []
        """A heap by when, empty where none was sent."""
        self._woken_at = inf

    def add(self, ticket: Ticket, due: float) -> None:
        """It was sent."""
        heappush(self.due, (due, ticket.number, ticket))

    def done(self, now: float) -> Iterator[Ticket]:
        """Those that should be, and showed no end. They may come and go meanwhile."""
        due = self.due
        while due and due[0][0] <= now:
            ticket = heappop(due)[2]
            if ticket.state is SENT:
                yield ticket

    def wake(self) -> None:
        """Somebody waits for the next one."""
        if self.due and self._wake is not None:
            at = self.due[0][0]
            if at < self._woken_at:
                self._woken_at = at
                self._wake(at, self._woken)

    def _woken(self, now: float) -> None:
        self._woken_at = inf
        self._call(now)
