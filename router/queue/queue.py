"""The queue of one router: the one thing that the gateway and the simulator call.

Bind early, send late. A request is placed at once, as without a queue, so that index, loads and
costs know of it; but while several classes of requests come, it is sent only when its replica has
less than `depth` seconds of prefill before it that were sent and show no first token. Before that
is the door, where new sessions wait while those in progress need the memory.

Synchronous and without a clock, like the placer, so that the gateway and the simulator run the same
code. Mutable state: the gates by slot, the turns by priority, the door, and the classes that came
of late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

from router.config.queueing import QueueSettings
from router.queue import precedence
from router.queue.arrivals import Arrivals
from router.queue.departures import Departures
from router.queue.door import Door
from router.queue.gate import Gate
from router.queue.lane import Lane
from router.queue.listener import QueueListener
from router.queue.mix import Mix
from router.queue.refusal import WORTH_PREDICTING_S, Calibration, RetryAfter
from router.queue.silent import Silent
from router.queue.ticket import (
    ANSWERING,
    HELD,
    NEW,
    NOBODY,
    NORMAL,
    OVER,
    PARKED,
    SENT,
    Refusal,
    Ticket,
)
from router.queue.turns import Turns
from router.scheduling.placer import Placement
from router.types import Load

LOW_DEPTH = 0.125
"""Of `depth`, for low priority: one prefill at a time, since those of better priority have to share
every step with it, and their answers decode beside it."""
BODIES_SHARE = 0.5
"""Of `body_memory`, for what waits: sessions in progress need the rest to go on and end."""
OUTCOMES = ("direct", "held", "parked", "refused", "expired", "gone", "overflow")
TICK_S = 0.5
"""How often `tick` wants to be called."""


class Queue:
    """See the module's text."""

    def __init__(
        self,
        loads: Sequence[Load],
        settings: QueueSettings,
        *,
        capacity: Callable[[int], float] | None = None,
        wake: Callable[[float, Callable[[float], None]], None] | None = None,
        seed: int | None = None,
    ) -> None:
        """loads: by slot, shared with the placer. capacity: KV tokens of a slot for the door, 0
        where it cannot say. wake: has something called at a time."""
        self.loads = loads
        self.settings = settings
        self.listener: QueueListener | None = None
        self.routers = 1
        """Routers that send to the same replicas."""
        self.calibration = Calibration()
        self.departures: Departures | None = None
        """Who leaves for elsewhere when the fleet is over; None where there is no elsewhere."""
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.draining = False
        self._turns: dict[int, Turns] = {}
        self.door = Door(loads, settings.queue_door, capacity or self._kv_capacity, self.turns)
        self._gates: list[Gate] = []
        self._retry_after = RetryAfter(seed)
        self._numbers = 0
        self._held = 0
        self._bytes = 0
        """Of the bodies of those that wait."""
        self._mix = Mix()
        self._arrivals = Arrivals()
        self._silent = Silent(wake, self._book_silent)
        self._pending: list[int] = []
        """Slots to pump."""
        self._pumping = False
        self._releasing = False

    # -- what is asked

    @property
    def waiting(self) -> int:
        """Requests that wait, at the door and in lanes."""
        return self._held + self.door.size

    @property
    def held(self) -> int:
        """Requests that wait in lanes."""
        return self._held

    @property
    def holds(self) -> bool:
        """Several classes of requests come, so that replicas are not sent more than `depth`."""
        return self._mix.matters

    def turns(self, priority: int) -> Turns:
        """The tenants' turns of one priority."""
        turns = self._turns.get(priority)
        if turns is None:
            turns = self._turns[priority] = Turns()
        return turns

    def gate(self, slot: int) -> Gate:
        """The gate of one replica."""
        gates = self._gates
        while slot >= len(gates):
            gates.append(Gate(len(gates), Lane(self.turns, _uncached)))
        return gates[slot]

    @property
    def gates(self) -> Sequence[Gate]:
        """By slot; those after the last one used are missing."""
        return self._gates

    # -- a request's way

    def offer(self, ticket: Ticket, now: float) -> None:
        """A request has come. Its owner's methods tell what becomes of it, now or later."""
        self._numbers += 1
        ticket.number = self._numbers
        ticket.since = now
        if self._silent.due:
            self._book_silent(now)
        self.came(ticket.priority, ticket.tenant, now)
        if ticket.aim and self.departures is not None:
            self._mix.aimed(now)
        if self.door.works and not self._let_in(ticket, now):
            return
        self._enter(ticket, now)

    def came(self, priority: int, tenant: str, now: float) -> None:
        """A request of this class has come, here or at another router."""
        recent = self._mix.recent
        recent[priority, tenant] = now
        if len(recent) > 1:
            self._mix.several()

    def _let_in(self, ticket: Ticket, now: float) -> bool:
        """Whether the request goes on now: its session is in progress, or there is room for one
        more. Else it is parked, or refused."""
        door = self.door
        if door.knows(ticket, now) or door.passes(ticket):
            return True
        eligible = ticket.owner.eligible()
        if not eligible:
            return True  # its owner finds out when it is to be placed
        own = ticket.expected_own = door.own(ticket)
        if not door.blocked(ticket, eligible):
            ticket.group = door.with_room(eligible, own)
            if ticket.group:
                door.flow.passed(own, now)
                return True
        if not self.draining and self._leaves_at_door(ticket, eligible, now):
            return False
        ticket.expected_wait = wait = door.wait(ticket, eligible, now)
        if self.draining:
            self._refuse(ticket, "draining", 0.0, now)
        elif self._full(ticket):
            self._refuse(ticket, "full", wait, now)
        elif ticket.limit and wait > ticket.limit:
            self._refuse(ticket, "late", wait - ticket.limit, now)
        else:
            ticket.wanted_share = door.wanted_share(eligible)
            ticket.state = PARKED
            ticket.was_parked = True
            self._joins(ticket)
            door.park(ticket, eligible, own)
            if self.departures is not None:
                self.departures.joins(ticket, ticket.owner.uncached())
        return False

    def _leaves_at_door(self, ticket: Ticket, eligible: int, now: float) -> bool:
        """The same as `_leaves`, of one that would be parked."""
        departures, door = self.departures, self.door
        if departures is None:
            return False
        lane, uncached = door.lane(eligible), ticket.owner.uncached()

        def late() -> bool:
            return 0.0 < ticket.aim < door.wait(ticket, eligible, now)

        return departures.make_room(ticket, lane, uncached, "late", late) or departures.make_room(
            ticket, lane, uncached, "full", lambda: self._full(ticket)
        )

    def _enter(self, ticket: Ticket, now: float) -> None:
        """Place it, and send it or have it wait in its replica's lane."""
        owner = ticket.owner
        eligible = owner.eligible()
        if ticket.group & eligible:
            eligible &= ticket.group
        if not eligible:
            self._refuse(ticket, "no_replica", 0.0, now)
            return
        if self._mix.matters:
            placement = precedence.place(ticket, eligible, self._gates, self.loads, now)
        else:
            placement = owner.place(eligible, now)
        if placement is None:
            self._over(ticket, now, None)
            return
        ticket.placement = placement
        if self.door.works:
            self.door.placed(ticket, placement, now)
        if self.listener is not None:
            self.listener.placed(ticket, now)
        slot = placement.slot
        gate = self._gates[slot] if slot < len(self._gates) else self.gate(slot)
        lane = gate.lane
        rate = placement.load.prefill_rate
        count, queued = 0, gate.sent_tokens + gate.others_sent_tokens
        if lane.size:
            count, queued = gate.ahead(ticket.lane_priority)
        ticket.predicted = (queued + placement.uncached) / rate
        ticket.placed_at = now
        if (ticket.limit or ticket.aim) and not ticket.goes_on and not ticket.retried:
            aim = ticket.aim
            if aim and self._leaves(
                ticket,
                placement,
                "late",
                lambda: self._late(gate, ticket, placement, aim, now) > 0.0,
                now,
            ):
                return
            count, queued = gate.ahead(ticket.lane_priority)
            late = self._late(gate, ticket, placement, ticket.limit, now) if ticket.limit else 0.0
            if late > 0.0:
                ticket.expected_wait = queued / rate * self.calibration.stretch
                self._refuse(ticket, "late", late, now)
                return
        if not count and (not self._mix.matters or self._open(gate, ticket, placement, now)):
            self._send(ticket, gate, placement, now)
            return
        if not ticket.retried and self._full(ticket):
            if self._leaves(ticket, placement, "full", lambda: self._full(ticket), now):
                return
            if self._full(ticket):
                self._refuse(ticket, "full", queued / rate * self.calibration.stretch, now)
                return
        ticket.state = HELD
        if not ticket.was_parked:
            ticket.ahead = count
            ticket.expected_wait = queued / rate * self.calibration.stretch
        ticket.was_held = True
        self._joins(ticket)
        lane.push(ticket)
        self._held += 1
        if self.departures is not None:
            self.departures.joins(ticket, placement.uncached)
        if self.listener is not None:
            self.listener.held(ticket, now)
        if count:
            self.pump(gate.slot, now)
        elif gate.sent:
            self._silent.wake()

    def _late(
        self, gate: Gate, ticket: Ticket, placement: Placement, limit: float, now: float
    ) -> float:
        """Seconds by which its first token would come too late there, if above 0."""
        rate = placement.load.prefill_rate
        queued = gate.ahead(ticket.lane_priority)[1]
        return self.calibration.late(
            limit, now - ticket.at, queued / rate, placement.uncached / rate
        )

    def _leaves(
        self, ticket: Ticket, placement: Placement, why: str, over: Callable[[], bool], now: float
    ) -> bool:
        """Whether it leaves for elsewhere, since there is too much to do: others that wait may
        instead. It was placed and does not wait yet."""
        owner, lane = ticket.owner, self._gates[placement.slot].lane
        departures = self.departures
        if departures is None or not departures.make_room(
            ticket, lane, placement.uncached, why, over
        ):
            return False
        owner.unplace(placement, now)
        return True

    def _open(self, gate: Gate, ticket: Ticket, placement: Placement, now: float) -> bool:
        """Whether the replica has room for this one to be sent."""
        if not self._mix.matters:
            return True
        settings = self.settings
        load = placement.load
        priority = ticket.priority
        if gate.sent + gate.others_sent > 0:
            depth = settings.queue_depth if priority <= NORMAL else settings.queue_depth * LOW_DEPTH
            if gate.depth(self.routers) >= depth * load.prefill_rate:
                return False
        if gate.others_waiting and not gate.tied and not ticket.retried:
            counters = self.turns(priority).counters
            mine = counters.get(ticket.tenant, 0.0)
            if gate.blocked_by_others(ticket, mine, counters):
                return False
        return not (
            priority > NORMAL
            and settings.queue_low_kv
            and load.kv_capacity
            and gate.running > 0
            and gate.kv_share(placement.uncached, load.kv_capacity, self.routers, now)
            > settings.queue_low_kv
        )

    def _send(self, ticket: Ticket, gate: Gate, placement: Placement, now: float) -> None:
        tokens = placement.uncached
        if ticket.was_held:
            placement.sent_at = now
            placement.found_idle_queue = not gate.sent + gate.others_sent
            self.outcomes["held"] += 1
        else:
            self.outcomes["parked" if ticket.was_parked else "direct"] += 1
        ticket.state = SENT
        ticket.sent_at = now
        gate.tied = False
        gate.sent += 1
        gate.sent_tokens += tokens
        gate.running += 1
        gate.running_tokens += tokens
        gate.since_read += tokens
        if not ticket.stream:
            due = now + gate.sent_tokens / placement.load.prefill_rate
            self._silent.add(ticket, due)
        if self._mix.matters:
            self.turns(ticket.priority).charge(ticket.tenant, tokens / ticket.weight)
        if self.listener is not None:
            self.listener.sent(ticket, now)
        ticket.owner.send(placement, now)

    def relieve(self, ticket: Ticket, now: float) -> None:
        """It was sent, and another replica computes its prompt: of prefills, its gate and its
        replica are charged one token for it from now on."""
        placement = ticket.placement
        if ticket.state is not SENT or placement is None:
            return
        before = placement.to_compute
        placement.relieve(now)
        self._gates[placement.slot].sent_tokens -= before - placement.to_compute
        ticket.predicted = 0.0  # its wait is not this gate's alone

    def burden(self, ticket: Ticket, now: float) -> None:
        """Its replica computes its prompt after all."""
        placement = ticket.placement
        if ticket.state is not SENT or placement is None:
            return
        before = placement.to_compute
        placement.burden(now)
        self._gates[placement.slot].sent_tokens += placement.to_compute - before

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Its first token has come."""
        if ticket.state is not SENT:
            return
        if ticket.predicted > WORTH_PREDICTING_S:
            self.calibration.saw(ticket.predicted, now - ticket.placed_at)
        self._frees(ticket, now)
        if self._held:
            self._pump_if_waiting(ticket.placement, now)

    def ended(self, ticket: Ticket, now: float, output: float = 0.0) -> None:
        """Its answer has ended, after so many tokens. The placer was told before."""
        self._over(ticket, now, output)

    def gone(self, ticket: Ticket, now: float) -> None:
        """It leaves without an answer, from wherever it is: its client has gone, or its last
        attempt has failed. What was placed and sent, the owner has taken back."""
        if ticket.state is PARKED or ticket.state is HELD:
            self.outcomes["gone"] += 1
        self._over(ticket, now, None)

    def left_for_elsewhere(self, ticket: Ticket, now: float) -> None:
        """It is answered outside of the fleet, wherever it was. Where it was placed and did not
        wait, the caller takes the placement back."""
        if ticket.state is not OVER:
            self.outcomes["overflow"] += 1
            ticket.sent_at = now
            self._over(ticket, now, None)

    def again(self, ticket: Ticket, now: float) -> None:
        """The attempt has failed, and the owner has taken its placement back: place it anew, before
        all others."""
        placement = ticket.placement
        self._leave(ticket, now)
        ticket.state = NEW
        ticket.placement = None
        ticket.group = 0
        ticket.retried = True
        ticket.since = now
        self._enter(ticket, now)
        self._pump_if_waiting(placement, now)

    # -- leaving

    def _over(self, ticket: Ticket, now: float, output: float | None) -> None:
        """It is over, in whatever state. output: None without an answer."""
        if ticket.state is OVER:
            return
        placement = ticket.placement
        self._leave(ticket, now)
        ticket.state = OVER
        ticket.owner = NOBODY
        released = False
        if ticket.of is not None:
            door = self.door
            if output is not None and placement is not None:
                own = door.answered(ticket, placement, output, now)
                if self.listener is not None:
                    self.listener.answered(ticket, own, now)
            else:
                door.sessions.gave_up(ticket.of, now)
                if self.listener is not None:
                    self.listener.gone(ticket, now)
            ticket.of = None
            released = door.size > 0
        if self._held:
            self._pump_if_waiting(placement, now)
        if released:
            self.release(now)

    def _leave(self, ticket: Ticket, now: float) -> None:
        """Take it out of the books of its state. Every way out comes through here."""
        state = ticket.state
        if state is PARKED:
            self.door.leave(ticket)
            self._waits_no_more(ticket)
        elif state is HELD:
            self._unhold(ticket)
            if self.listener is not None:
                self.listener.left(ticket, now)
            assert ticket.placement is not None
            ticket.owner.unplace(ticket.placement, now)
        elif state is SENT or state is ANSWERING:
            if state is SENT:
                self._frees(ticket, now)
            placement = ticket.placement
            assert placement is not None
            gate = self._gates[placement.slot]
            gate.running -= 1
            gate.running_tokens -= placement.uncached

    def _frees(self, ticket: Ticket, now: float) -> None:
        """Its gate counts it no more as without a first token."""
        placement = ticket.placement
        assert placement is not None
        gate = self._gates[placement.slot]
        ticket.state = ANSWERING
        gate.sent -= 1
        gate.sent_tokens -= placement.to_compute
        if self.listener is not None:
            self.listener.first_token(ticket, now)

    def _unhold(self, ticket: Ticket) -> None:
        assert ticket.placement is not None
        self._gates[ticket.placement.slot].lane.remove(ticket)
        self._held -= 1
        self._waits_no_more(ticket)

    def _joins(self, ticket: Ticket) -> None:
        """It begins to wait."""
        self.turns(ticket.priority).joins(ticket.tenant)
        self._bytes += ticket.body
        self._arrivals.add(ticket)

    def _waits_no_more(self, ticket: Ticket) -> None:
        self.turns(ticket.priority).leaves(ticket.tenant)
        self._bytes -= ticket.body

    def _full(self, ticket: Ticket) -> bool:
        """Whether no more may wait."""
        settings = self.settings
        return (
            self.waiting >= settings.queue_limit
            or self._bytes + ticket.body > BODIES_SHARE * settings.body_memory
        )

    def _refuse(self, ticket: Ticket, why: str, seconds: float, now: float) -> None:
        """It will not be sent. seconds: after which there may be room."""
        if ticket.state is OVER:  # it failed when its owner was asked
            return
        self.outcomes["expired" if why == "expired" else "refused"] += 1
        if ticket.state is NEW and ticket.placement is not None:
            ticket.owner.unplace(ticket.placement, now)
        refusal = Refusal(why, self._retry_after(seconds), now - ticket.at, ticket.expected_wait)
        owner = ticket.owner
        self._over(ticket, now, None)
        owner.refuse(refusal, now)

    # -- pumping

    def _pump_if_waiting(self, placement: Placement | None, now: float) -> None:
        if placement is not None and self._gates[placement.slot].lane.size:
            self.pump(placement.slot, now)

    def pump(self, slot: int, now: float) -> None:
        """The replica may have room: send what waits for it."""
        self._pending.append(slot)
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._pending:
                self._pump(self._pending.pop(), now)
        finally:
            self._pumping = False

    def _pump(self, slot: int, now: float) -> None:
        gate = self._gates[slot]
        lane = gate.lane
        while lane.size:
            ticket = lane.head()
            assert ticket is not None
            placement = ticket.placement
            assert placement is not None
            if not self._open(gate, ticket, placement, now):
                if gate.sent:
                    self._silent.wake()
                return
            self._unhold(ticket)
            self._send(ticket, gate, placement, now)

    def _book_silent(self, now: float) -> None:
        """Requests whose answer is no stream free their gate by the clock."""
        for ticket in self._silent.done(now):
            self._frees(ticket, now)
            self._pump_if_waiting(ticket.placement, now)
        if (
            self._silent.due
            and self._held
            and any(gate.lane.size and gate.sent for gate in self._gates)
        ):
            self._silent.wake()

    def release(self, now: float) -> None:
        """Let in what waits at the door, as far as there is room."""
        door = self.door
        if not door.size or self._releasing:
            return
        self._releasing = True
        try:
            moved = True
            while moved and door.size:
                moved = False
                for ticket in door.heads():
                    if ticket.state is PARKED and self._let_parked_in(ticket, now):
                        moved = True
        finally:
            self._releasing = False

    def _let_parked_in(self, ticket: Ticket, now: float) -> bool:
        """Whether this one waits at the door no more."""
        door = self.door
        eligible = ticket.owner.eligible()
        if not eligible:
            self._refuse(ticket, "no_replica", 0.0, now)
            return True
        if door.knows(ticket, now):  # another request of its session was let in meanwhile
            self._leave(ticket, now)
            ticket.state = NEW
            ticket.group = 0
            self._enter(ticket, now)
            return True
        own = door.own(ticket)
        mask = door.with_room(eligible, own)
        if not mask:
            return False
        self._leave(ticket, now)
        ticket.state = NEW
        ticket.group = mask
        ticket.expected_own = own
        door.flow.passed(own, now)
        self._enter(ticket, now)
        return True

    # -- what happens beside requests

    def tick(self, now: float) -> None:
        """About every TICK_S seconds."""
        self._mix.tick(now)
        if self._silent.due:
            self._book_silent(now)
        timeout = self.settings.queue_timeout or inf
        for ticket in self._arrivals.late(timeout, now):
            self._refuse(ticket, "expired", timeout, now)
        if self.departures is not None:
            self.departures.tick(now)
        self._arrivals.tidy(self.waiting)
        if self.door.share or self.door.works:
            self.door.tick(now)
            self.release(now)
        if self._held:
            for gate in [gate for gate in self._gates if gate.lane.size]:
                gate.end_tie()
                self.pump(gate.slot, now)

    def read(self, slot: int, usage: float, now: float) -> None:
        """The engine has said what share of its KV memory is in use."""
        gate = self.gate(slot)
        gate.read(usage, now)
        if gate.lane.size:
            self.pump(slot, now)

    def replica_out(self, slot: int, now: float) -> None:
        """The replica takes no more requests: what waits for it is placed anew, in order."""
        if slot >= len(self._gates):
            return
        moved = []
        for ticket in tuple(self._gates[slot].lane):
            if ticket.state is not HELD:
                continue
            # As a last resort it may stay, where no other is left.
            stays = ticket.owner.eligible() >> slot & 1
            if ticket.state is HELD and not stays:
                self._leave(ticket, now)
                ticket.state = NEW
                ticket.placement = None
                ticket.group = 0
                moved.append(ticket)
        moved.sort(key=lambda ticket: (ticket.lane_priority, ticket.number))
        for ticket in moved:
            self._enter(ticket, now)

    def replica_left(self, slot: int, now: float) -> None:
        """The replica is gone; its slot may become another's."""
        self.replica_out(slot, now)
        self.door.sessions.forget_slot(slot)
        if slot < len(self._gates):
            self._gates[slot].forget_engine()

    def drain(self, now: float) -> None:
        """Refuse what waits at the door, now and from now on. What is held is still sent."""
        self.draining = True
        for ticket in self.door.parked():
            if ticket.state is PARKED:
                self._refuse(ticket, "draining", 0.0, now)

    def _kv_capacity(self, slot: int) -> float:
        return self.loads[slot].kv_capacity


def _uncached(ticket: Ticket) -> float:
    assert ticket.placement is not None
    return ticket.placement.uncached
