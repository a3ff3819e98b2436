"""What other routers tell of their requests, applied to this router's queue.

Every call that charges something has one that takes it back, so that a router that is lost can be
undone.
"""

from __future__ import annotations

from router.queue.queue import Queue
from router.queue.session import Session, Tail
from router.queue.ticket import Ticket


class PeerQueues:
    """The others' part in one queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def placed(
        self, ticket: Ticket, prefix: int, own: float, expected: float, slot: int, now: float
    ) -> Session:
        """A request of this session was placed there. Hand the session to the call that says that
        this is over. ticket: names the session, as a request of this router's own would."""
        sessions = self._queue.door.sessions
        session = sessions.find(ticket)
        if session is None:
            session = sessions.begin(ticket.session, prefix, own, expected, now)
        else:
            sessions.came(session, now)
        sessions.moved(session, slot)
        return session

    def answered(self, session: Session, own: float, tail: Tail | None, now: float) -> None:
        """It has its answer."""
        self._queue.door.sessions.answered(session, own, tail, now)
        self._queue.release(now)

    def gone(self, session: Session, now: float) -> None:
        """It has left without one."""
        self._queue.door.sessions.gave_up(session, now)
        self._queue.release(now)

    def held(self, slot: int, priority: int, tenant: str, tokens: float) -> None:
        """So much more waits for this replica there."""
        waiting = self._queue.gate(slot).others_waiting
        key = (priority, tenant)
        waiting[key] = waiting.get(key, 0.0) + tokens

    def unheld(self, slot: int, priority: int, tenant: str, tokens: float, now: float) -> None:
        """So much waits no more."""
        waiting = self._queue.gate(slot).others_waiting
        key = (priority, tenant)
        left = waiting.get(key, 0.0) - tokens
        if left > 0.0:
            waiting[key] = left
        else:
            waiting.pop(key, None)
        if self._queue.gate(slot).lane.size:
            self._queue.pump(slot, now)

    def sent(self, slot: int, priority: int, tenant: str, tokens: float, now: float) -> None:
        """It was sent, and shows no first token yet."""
        queue = self._queue
        queue.came(priority, tenant, now)
        queue.turns(priority).charge(tenant, tokens)
        gate = queue.gate(slot)
        gate.tied = False
        gate.others_sent += 1
        gate.others_sent_tokens += tokens
        gate.others_since_read += tokens

    def first_token(self, slot: int, tokens: float, now: float) -> None:
        """It has its first token, or is over without one."""
        gate = self._queue.gate(slot)
        gate.others_sent -= 1
        gate.others_sent_tokens -= tokens
        if gate.lane.size:
            self._queue.pump(slot, now)
