"""The door: a new session waits while the sessions in progress are expected to want the KV memory.

Beyond the memory's capacity every request is served, and none well: sessions evict each other's
histories while they pause, compute them again, and so take longer and hold more. Where new ones
wait instead, those in progress go on from their caches and end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.queue.lane import Lane
from router.queue.refusal import Flow
from router.queue.sessions import Sessions
from router.queue.ticket import Ticket
from router.queue.turns import Turns
from router.scheduling.placer import PREFIX_BLOCKS, Placement
from router.types import Load, slots

SINGLE = 0.2
"""What begins like requests of which fewer go on passes: all it needs is memory for its answer."""
HORIZON = 1.0
"""The idle time for which a cache is worth keeping, in units of the time that the replica takes to
compute as much as its whole cache."""


def prefix_of(ticket: Ticket) -> int:
    """What names the application a prompt belongs to: 0 for a prompt too short to tell."""
    chain = ticket.chain
    blocks = len(chain)
    return chain[(blocks if blocks < PREFIX_BLOCKS else PREFIX_BLOCKS) - 1] if blocks else 0


class Door:
    """Who may begin a session, and where. Mutable: the sessions' books and the lanes of those that
    wait, one for each set of replicas that they may go to."""

    def __init__(
        self,
        loads: Sequence[Load],
        share: float,
        capacity: Callable[[int], float],
        turns: Callable[[int], Turns],
    ) -> None:
        """capacity: tokens of KV memory that a slot has; 0 where that is not known."""
        self.sessions = Sessions()
        self.share = share
        self.works = False
        """It is wanted, and the size of some replica's KV memory is known. As of the last tick."""
        self.flow = Flow()
        self._loads = loads
        self._capacity = capacity
        self._turns = turns
        self._lanes: dict[int, Lane] = {}
        self.size = 0

    def knows(self, ticket: Ticket, now: float) -> bool:
        """Whether the request goes on with a session; then it is counted as one of its."""
        session = self.sessions.find(ticket)
        if session is None:
            return False
        if not session.active and now - session.seen < self.sessions.horizon:
            ticket.back_in_time = True
        self.sessions.came(session, now)
        ticket.of = session
        ticket.goes_on = True
        return True

    def passes(self, ticket: Ticket) -> bool:
        """Whether it hardly begins a session."""
        return self.sessions.beginnings.share(prefix_of(ticket)) < SINGLE

    def own(self, ticket: Ticket) -> float:
        """Tokens of KV memory that the session it begins is expected to want: what it has to
        compute, and what it grows to if it comes back while its cache is worth keeping."""
        now = max(ticket.owner.uncached(), 1.0)
        grows = self.sessions.mean_own() - now
        if grows > 0.0:
            now += grows * self.sessions.returning(prefix_of(ticket))
        return float(int(now))

    def with_room(self, eligible: int, own: float) -> int:
        """Those of the replicas that have room for a session of this size. One that nobody wants
        anything of has room for any."""
        if not self.share:
            return eligible
        mask = 0
        share, capacity_of, wanted_of = self.share, self._capacity, self.sessions.wanted
        for slot in slots(eligible):
            capacity = capacity_of(slot)
            if capacity:
                wanted = wanted_of(slot, capacity)
                if wanted > 0.0 and wanted + own > share * capacity:
                    continue
            mask |= 1 << slot
        return mask

    def wanted_share(self, eligible: int) -> float:
        """The least share of KV memory that sessions in progress want at one of these."""
        return min((self.ratio(slot) for slot in slots(eligible)), default=0.0)

    def ratio(self, slot: int) -> float:
        """Share of a replica's KV memory that sessions in progress want; 0 where its size is not
        known."""
        capacity = self._capacity(slot)
        return self.sessions.wanted(slot, capacity) / capacity if capacity else 0.0

    # -- those that wait

    def blocked(self, ticket: Ticket, eligible: int) -> bool:
        """Whether somebody waits who goes before it, for one of the same replicas."""
        return any(
            lane.size and group & eligible and lane.first_priority() <= ticket.lane_priority
            for group, lane in self._lanes.items()
        )

    def lane(self, group: int) -> Lane | None:
        """Where those wait that may go to these replicas; None while nobody does."""
        return self._lanes.get(group)

    def park(self, ticket: Ticket, eligible: int, own: float) -> None:
        """It waits from now on."""
        ticket.group = eligible
        ticket.expected_own = own
        lane = self._lanes.get(eligible)
        if lane is None:
            lane = self._lanes[eligible] = Lane(self._turns, _expected_own)
        ticket.ahead = lane.ahead(ticket.priority)[0]
        lane.push(ticket)
        self.size += 1

    def leave(self, ticket: Ticket) -> None:
        """It waits no more."""
        lane = self._lanes[ticket.group]
        lane.remove(ticket)
        self.size -= 1
        if not lane.size:
            del self._lanes[ticket.group]

    def heads(self) -> list[Ticket]:
        """Whose turn it is, for each set of replicas, in order of priority and arrival."""
        heads = [head for lane in self._lanes.values() if (head := lane.head()) is not None]
        if len(heads) > 1:
            heads.sort(key=lambda ticket: (ticket.lane_priority, ticket.at, ticket.number))
        return heads

    def parked(self) -> list[Ticket]:
        """All of them, in order of arrival."""
        found = [ticket for lane in self._lanes.values() for ticket in lane]
        found.sort(key=lambda ticket: (ticket.at, ticket.number))
        return found

    def sizes(self) -> dict[int, tuple[int, float]]:
        """By priority: requests, tokens."""
        total: dict[int, tuple[int, float]] = {}
        for lane in self._lanes.values():
            for priority, (size, tokens) in lane.sizes().items():
                before = total.get(priority, (0, 0.0))
                total[priority] = (before[0] + size, before[1] + tokens)
        return total

    def wait(self, ticket: Ticket, eligible: int, now: float) -> float:
        """Seconds until it would be let in, by what passes the door of late; 0 while that is not
        known."""
        rate = self.flow.rate(now)
        if rate <= 0.0:
            return 0.0
        lane = self._lanes.get(eligible)
        ahead = lane.ahead(ticket.priority)[1] if lane is not None else 0.0
        return (ahead + ticket.expected_own) / rate

    # -- sessions

    def placed(self, ticket: Ticket, placement: Placement, now: float) -> None:
        """A request was placed: its session wants memory there."""
        session = ticket.of
        if session is None:
            session = ticket.of = self.sessions.begin(
                ticket.session, prefix_of(ticket), placement.uncached, ticket.expected_own, now
            )
        self.sessions.moved(session, placement.slot)

    def answered(self, ticket: Ticket, placement: Placement, output: float, now: float) -> float:
        """Its answer has ended. Returns what its session has to itself now."""
        session = ticket.of
        assert session is not None
        own = placement.uncached
        if ticket.goes_on:
            own = min(session.own + placement.uncached, placement.tokens)
        own += output
        self.sessions.answered(session, own, ticket.tail, now)
        return own

    def tick(self, now: float) -> None:
        """Pauses have become longer. About twice a second."""
        seconds = [
            capacity / load.prefill_rate
            for slot, load in enumerate(self._loads)
            if (capacity := self._capacity(slot))
        ]
        self.works = self.share > 0.0 and bool(seconds)
        self.sessions.tick(now)
        self.sessions.set_horizon(HORIZON * sum(seconds) / len(seconds) if seconds else 0.0)


def _expected_own(ticket: Ticket) -> float:
    return ticket.expected_own
