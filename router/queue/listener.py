"""What a queue tells of its own requests."""

from __future__ import annotations

from typing import Protocol

from router.queue.ticket import Ticket


class QueueListener(Protocol):
    """Told of this router's own requests, for the other routers. It must take next to no time."""

    def placed(self, ticket: Ticket, now: float) -> None:
        """Its session is known."""
        ...

    def held(self, ticket: Ticket, now: float) -> None:
        """It waits in its replica's lane."""
        ...

    def left(self, ticket: Ticket, now: float) -> None:
        """It was held, and leaves the lane without being sent."""
        ...

    def sent(self, ticket: Ticket, now: float) -> None:
        """It is sent to its replica."""
        ...

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Its gate is free again: a first token, or its end without one."""
        ...

    def answered(self, ticket: Ticket, own: float, now: float) -> None:
        """Its answer has ended; its session has so many tokens to itself."""
        ...

    def gone(self, ticket: Ticket, now: float) -> None:
        """It was placed, and is over without an answer."""
        ...
