"""The requests of one other router, as they are charged to this router's queue.

Every way out takes back what was charged, so that a router that is lost leaves nothing.
"""

from __future__ import annotations

import msgspec

from router.queue.door import prefix_of
from router.queue.peers import PeerQueues
from router.queue.session import Session, Tail
from router.queue.ticket import NOBODY, Ticket
from router.scheduling.peer_request import PeerRequest
from router.state.codec import NO_SESSION, QueuedRequest


class PeerTicket(msgspec.Struct):
    """One of its requests."""

    slot: int
    priority: int
    tenant: str
    tokens: float
    session: Session | None
    held: bool = False
    """It waits in its replica's lane there."""
    sent: bool = False
    """It was sent, and shows no first token."""


class PeerTickets:
    """By serial. Mutable."""

    def __init__(self, queues: PeerQueues) -> None:
        self._queues = queues
        self._by_serial: dict[int, PeerTicket] = {}

    def __len__(self) -> int:
        return len(self._by_serial)

    def placed(self, serial: int, request: PeerRequest, told: QueuedRequest, now: float) -> None:
        """It was routed, and is held or sent."""
        if serial in self._by_serial:
            return
        queues = self._queues
        tokens = request.uncached
        session = None
        if told.session != NO_SESSION:
            ticket = Ticket(
                NOBODY, now, request.own_chain(), request.size, session=told.session.hex()
            )
            prefix = prefix_of(ticket)
            session = queues.placed(ticket, prefix, tokens, told.counted, request.slot, now)
        made = PeerTicket(request.slot, told.priority, told.tenant, tokens, session)
        self._by_serial[serial] = made
        if told.held:
            made.held = True
            queues.held(made.slot, made.priority, made.tenant, tokens)
        else:
            made.sent = True
            queues.sent(made.slot, made.priority, made.tenant, tokens, now)
            if request.first:
                self._free(made, now)

    def sent(self, serial: int, now: float) -> None:
        """It was held, and is sent."""
        ticket = self._by_serial.get(serial)
        if ticket is None or not ticket.held:
            return
        ticket.sent = True
        self._queues.sent(ticket.slot, ticket.priority, ticket.tenant, ticket.tokens, now)
        self._unhold(ticket, now)

    def first_token(self, serial: int, now: float) -> None:
        """Its gate is free again."""
        ticket = self._by_serial.get(serial)
        if ticket is not None:
            self._free(ticket, now)

    def finished(self, serial: int, now: float) -> None:
        """The placer there says that it is over; `ended` tells what its session has."""
        ticket = self._by_serial.get(serial)
        if ticket is None:
            return
        if ticket.session is None:
            self.ended(serial, None, None, now)
        else:
            self._free(ticket, now)

    def ended(self, serial: int, own: float | None, end: Tail | None, now: float) -> None:
        """It is over. own: what its session has to itself now; None without an answer."""
        ticket = self._by_serial.pop(serial, None)
        if ticket is None:
            return
        if ticket.held:
            self._unhold(ticket, now)
        self._free(ticket, now)
        if ticket.session is None:
            return
        if own is None:
            self._queues.gone(ticket.session, now)
        else:
            self._queues.answered(ticket.session, own, end, now)

    def keep(self, serials: set[int], now: float) -> None:
        """No others are in flight there."""
        for serial in [serial for serial in self._by_serial if serial not in serials]:
            self.ended(serial, None, None, now)

    def left(self, slot: int, now: float) -> None:
        """That replica has left."""
        for serial, ticket in list(self._by_serial.items()):
            if ticket.slot == slot:
                self.ended(serial, None, None, now)

    def _unhold(self, ticket: PeerTicket, now: float) -> None:
        ticket.held = False
        self._queues.unheld(ticket.slot, ticket.priority, ticket.tenant, ticket.tokens, now)

    def _free(self, ticket: PeerTicket, now: float) -> None:
        if ticket.sent:
            ticket.sent = False
            self._queues.first_token(ticket.slot, ticket.tokens, now)
