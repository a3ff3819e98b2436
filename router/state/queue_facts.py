"""What this router's queue has to tell the others, beside what its placer tells.

The placer's facts say when a gate is free again and when a request has left without an answer. So
these are told: who a request is of when it is placed, when it is sent after it was held, and what
its session has when its answer has ended.
"""

from __future__ import annotations

import secrets
from typing import Protocol

import msgspec

from router.queue.queue import Queue
from router.queue.ticket import State, Ticket
from router.scheduling.placer import Placement
from router.state.codec import ENDED, FREED, NO_SESSION, PLACED, SENT, QueuedRequest


class QueueFact(msgspec.Struct, gc=False):
    """About one request that the queue has placed."""

    placement: Placement
    ticket: Ticket
    session: str = ""
    """Names its session; empty when it has none."""
    counted: float = 0.0
    """Tokens that its session counts for."""
    own: float | None = None
    """Tokens that its session has to itself after the answer; None without one."""

    def placed(self, serial: int) -> QueuedRequest | None:
        """As it is now; None when it was placed anew or refused meanwhile, which the placer
        tells."""
        ticket = self.ticket
        if ticket.placement is not self.placement:
            return None
        if ticket.state is State.OVER and not ticket.sent_at:
            return None
        session = bytes.fromhex(self.session) if self.session else NO_SESSION
        held = ticket.state is State.HELD
        return QueuedRequest(serial, ticket.priority, held, self.counted, session, ticket.tenant)


class QueueOutbox(Protocol):
    """Takes what is to be told."""

    def tell_queue(self, kind: int, fact: QueueFact) -> None:
        """It is sent with the next batch."""
        ...


class QueueTeller:
    """Implements ``router.queue.listener.QueueListener``."""

    def __init__(self, queue: Queue, outbox: QueueOutbox) -> None:
        self._sessions = queue.door.sessions
        self._outbox = outbox

    def placed(self, ticket: Ticket, now: float) -> None:  # noqa: ARG002
        placement = ticket.placement
        assert placement is not None
        session = ticket.of
        if session is None:
            self._outbox.tell_queue(PLACED, QueueFact(placement, ticket))
            return
        if not session.key:
            # Told by prompts here: the others need a name for it.
            self._sessions.name(session, secrets.token_hex(16))
        self._outbox.tell_queue(PLACED, QueueFact(placement, ticket, session.key, session.counted))

    def held(self, ticket: Ticket, now: float) -> None:
        """PLACED tells its state."""

    def left(self, ticket: Ticket, now: float) -> None:
        """Its placement fails, which the placer tells."""

    def sent(self, ticket: Ticket, now: float) -> None:  # noqa: ARG002
        if ticket.was_held:
            self._tell(SENT, ticket, None)

    def first_token(self, ticket: Ticket, now: float) -> None:  # noqa: ARG002
        # While it was held the placer may have told already that its prefill should be done.
        if ticket.was_held and not ticket.stream:
            self._tell(FREED, ticket, None)

    def answered(self, ticket: Ticket, own: float, now: float) -> None:  # noqa: ARG002
        self._tell(ENDED, ticket, own)

    def gone(self, ticket: Ticket, now: float) -> None:  # noqa: ARG002
        if ticket.placement is not None:
            self._tell(ENDED, ticket, None)

    def _tell(self, kind: int, ticket: Ticket, own: float | None) -> None:
        placement = ticket.placement
        assert placement is not None
        self._outbox.tell_queue(kind, QueueFact(placement, ticket, own=own))
