"""Other gateways' queues, our reading of their documents: requests wait unbound at the router.

Sources: llm-d-router's flow control (bands by priority; round-robin over flows, first come first
served within one; saturation of the pool by its `utilization` detector: the mean over servers of
max(waiting / 5, KV usage / 0.8), from metrics read every 50 ms; a cycle of 1 ms sends one).
ai-dynamo/dynamo, `--router-queue-threshold`: while every worker has more than so many times
`max_num_batched_tokens` of prefill before it, requests wait, the best priority first. Its default
was 2, then 4, then 16 in later documents; 2 is used here, since the others hold less back.

In their favour: their limits on what may wait and for how long are left out, metrics are never
stale, and fairness is round-robin, which llm-d's default (`global-strict`) is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from loadgen.simulate.peers.llmd import POLL_SECONDS, WeightedScorers
from router.queue.ticket import State, Ticket
from router.scheduling.placer import Placer
from router.types import Load

QUEUE_THRESHOLD = 5.0
KV_THRESHOLD = 0.8
CYCLE_S = 0.001
PREFILL_THRESHOLD = 2.0
MOST_BATCHED_TOKENS = 8192.0


class HoldingQueue:
    """Sends while there is room: the best priority, then tenants in rotation, then arrival.

    Has the calls of ``router.queue.queue.Queue`` that the loop makes. Mutable: what waits.
    """

    def __init__(
        self,
        has_room: Callable[[], bool],
        *,
        fair: bool,
        pace: float = inf,
    ) -> None:
        """fair: tenants take turns. pace: requests sent from what waits at one reading of metrics;
        where that is infinite, first tokens and ends send on, too."""
        self._has_room = has_room
        self._fair = fair
        self._pace = pace
        self._lines: dict[int, dict[str, deque[Ticket]]] = {}
        """Priority -> tenant, whose turn it is first -> what waits. May hold what has left."""
        self.waiting = 0

    def offer(self, ticket: Ticket, now: float) -> None:
        """A request has come."""
        if not self.waiting and self._has_room():
            self._send(ticket, now)
            return
        ticket.state = State.PARKED
        lines = self._lines.setdefault(ticket.priority, {})
        lines.setdefault(ticket.tenant if self._fair else "", deque()).append(ticket)
        self.waiting += 1
        self._went_on(now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Its first token has come."""
        if ticket.state is State.SENT:
            ticket.state = State.ANSWERING
            self._went_on(now)

    def ended(self, ticket: Ticket, now: float, output: float = 0.0) -> None:  # noqa: ARG002
        """Its answer has ended."""
        ticket.state = State.OVER
        self._went_on(now)

    def gone(self, ticket: Ticket, now: float) -> None:
        """It leaves without an answer, from wherever it is."""
        if ticket.state is State.PARKED:
            self.waiting -= 1
        ticket.state = State.OVER
        self._went_on(now)

    def polled(self, now: float) -> None:
        """The engines' metrics were read."""
        self._pump(self._pace, now)

    def _went_on(self, now: float) -> None:
        if self._pace == inf:
            self._pump(inf, now)

    def _pump(self, most: float, now: float) -> None:
        while self.waiting and most > 0 and self._has_room():
            self.waiting -= 1
            self._send(self._next(), now)
            most -= 1

    def _next(self) -> Ticket:
        """Take out whose turn it is; only where something waits."""
        while True:
            priority = min(self._lines)
            lines = self._lines[priority]
            tenant = next(iter(lines))
            line = lines.pop(tenant)
            ticket = line.popleft()
            if line:
                if ticket.state is State.PARKED:
                    lines[tenant] = line  # to the end of the rotation
                else:
                    self._lines[priority] = {tenant: line, **lines}
            elif not lines:
                del self._lines[priority]
            if ticket.state is State.PARKED:
                return ticket

    def _send(self, ticket: Ticket, now: float) -> None:
        owner = ticket.owner
        placement = owner.place(owner.eligible(), now)
        assert placement is not None
        ticket.placement = placement
        ticket.state = State.SENT
        owner.send(placement, now)


def llmd_flow_control(placer: Placer) -> HoldingQueue:
    """llm-d's: a saturated pool is sent nothing."""
    policy = placer.policy
    assert isinstance(policy, WeightedScorers)

    def has_room() -> bool:
        gauges = policy.gauges
        used = [max(g.waiting / QUEUE_THRESHOLD, g.kv_usage / KV_THRESHOLD) for g in gauges]
        return sum(used) < len(used)

    return HoldingQueue(has_room, fair=True, pace=POLL_SECONDS / CYCLE_S)


def dynamo_queue(placer: Placer) -> HoldingQueue:
    """Dynamo's: nothing is sent while all workers have much prefill before them."""
    loads: Sequence[Load] = placer.loads
    most = PREFILL_THRESHOLD * MOST_BATCHED_TOKENS
    return HoldingQueue(lambda: any(load.queued_tokens <= most for load in loads), fair=False)
