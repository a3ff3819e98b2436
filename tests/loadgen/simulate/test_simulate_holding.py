"""Other gateways' queues in the simulator: what is held back, and in which order it goes on."""

from __future__ import annotations

from array import array
from typing import cast

import pytest

from loadgen.engine import EngineParams
from loadgen.simulate import prepare, run_loop, together
from loadgen.simulate.fleet import Arrangement
from loadgen.simulate.peers import DYNAMO_QUEUE, LLMD_QUEUE
from loadgen.simulate.peers.holding import HoldingQueue
from loadgen.workloads import Plan, Poisson, make
from router.prompt.spans import SPANS
from router.queue.ticket import HIGH, LOW, Owner, Ticket
from router.scheduling.placer import Placement


class Asks:
    """Owns a request; remembers that it was sent."""

    def __init__(self, sent: list[str], name: str) -> None:
        self.sent = sent
        self.name = name

    def eligible(self) -> int:
        return 1

    def place(self, eligible: int, now: float) -> Placement:
        return cast(Placement, object())

    def send(self, placement: Placement, now: float) -> None:
        self.sent.append(self.name)


@pytest.mark.parametrize(
    ("fair", "order"), [(True, "h a1 b1 a2 a4 low"), (False, "h a1 a2 a4 b1 low")]
)
def test_what_waits_goes_by_priority_then_by_turns_or_arrival(fair: bool, order: str) -> None:
    sent: list[str] = []
    room = [False]
    queue = HoldingQueue(lambda: room[0], fair=fair, pace=4)
    tickets = {}
    for name, tenant, priority in (
        ("low", "a", LOW), ("a1", "a", 0), ("a2", "a", 0), ("a3", "a", 0), ("a4", "a", 0),
        ("b1", "b", 0), ("h", "a", HIGH),
    ):  # fmt: skip
        owner = cast(Owner, Asks(sent, name))
        tickets[name] = Ticket(owner, 0.0, array("Q"), 1, tenant=tenant, priority=priority)
        queue.offer(tickets[name], 0.0)
    queue.gone(tickets["a3"], 0.5)
    assert (queue.waiting, sent) == (6, [])
    room[0] = True
    queue.polled(1.0)
    assert sent == order.split()[:4]  # no more at one reading
    queue.polled(1.1)
    assert sent == order.split()
    assert queue.waiting == 0


@pytest.mark.parametrize("arm", [LLMD_QUEUE, DYNAMO_QUEUE], ids=["llm-d", "dynamo"])
def test_beside_a_batch_in_overload_all_is_answered_and_the_urgent_first(arm: Arrangement) -> None:
    params = [EngineParams(block_size=64)] * 2
    plans = [
        prepare(
            Plan(make("unique", {}), Poisson(rate), seed=seed, duration=30.0),
            64,
            SPANS,
            priority=priority,
        )
        for seed, rate, priority in ((1, 2, HIGH), (2, 40, LOW))
    ]
    both = together(*plans)
    records = run_loop(both, arm, params).records
    assert len(records.reason) == sum(len(jobs) for _, jobs in both.sessions)
    assert set(records.reason) == {0}
    urgent = max(jobs[0].session for _, jobs in plans[0].sessions)
    waits: dict[bool, list[float]] = {True: [], False: []}
    for session, due, first in zip(records.session, records.scheduled, records.first, strict=True):
        waits[session <= urgent].append(first - due)
    mean = {which: sum(found) / len(found) for which, found in waits.items()}
    assert mean[True] < 0.5 * mean[False]


def test_such_a_queue_is_one_routers() -> None:
    prepared = prepare(Plan(make("unique", {}), Poisson(1.0), seed=1, duration=1.0), 64, SPANS)
    with pytest.raises(ValueError, match="one router"):
        run_loop(prepared, DYNAMO_QUEUE, [EngineParams(block_size=64)], routers=2)
