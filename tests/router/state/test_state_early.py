"""When facts are sent and read: requests at once, and not too often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from prompts import prompt_of
from state_world import Node, chain, until

from router.index import ByteIndex
from router.policies import load_policy
from router.prompt.spans import SPANS
from router.scheduling.placer import Placement, Placer
from router.state.allowance import Allowance
from router.state.chain_dictionary import ChainDictionary
from router.state.outbox import BATCH_DELAY_S, EARLY_SPACING_S, MAX_EARLY_BATCHES, Outbox
from router.types import Load

LARGE_BLOCKS = 40
SMALL_BLOCKS = 4


class Later:
    """Timers that never run by themselves."""

    def __init__(self) -> None:
        self.armed: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, delay: float, call: Callable[[], None]) -> Later.Timer:
        entry = (delay, call)
        self.armed.append(entry)
        return self.Timer(partial(self.armed.remove, entry))

    class Timer:
        def __init__(self, cancel: Callable[[], None]) -> None:
            self.cancel = cancel

    @property
    def delays(self) -> list[float]:
        return [round(delay, 6) for delay, _ in self.armed]

    def run(self) -> None:
        _, call = self.armed.pop()
        call()


class Routing:
    """A placer that tells an outbox, at times of the test's own."""

    def __init__(self) -> None:
        index = ByteIndex(SPANS)
        index.add_replica(0, 1 << 40)
        self.placer = Placer(index, load_policy("cache_aware"), [Load()])
        self.later = Later()
        self.outbox = Outbox(1, ChainDictionary(), {0: 7}, self.later)
        self.placer.listener = self.outbox
        self.batches = 0
        self.outbox.ready = self.take

    def take(self) -> None:
        self.batches += self.outbox.take() is not None

    def send(self, blocks: int, now: float) -> Placement:
        return self.placer.place(prompt_of(chain(blocks), SPANS[blocks] + 9), 1, now)


def test_a_request_is_told_at_once() -> None:
    routing = Routing()
    routing.outbox.forgot(7)
    assert routing.later.delays == [BATCH_DELAY_S]
    routing.send(SMALL_BLOCKS, 1.004)
    assert routing.later.delays == [0.0]  # in place of the other timer: one batch has both
    routing.send(LARGE_BLOCKS, 1.004)
    assert routing.later.delays == [0.0]
    routing.later.run()
    assert routing.batches == 1
    assert not routing.outbox.waiting
    assert not routing.later.armed


def test_what_becomes_of_a_request_waits_for_company() -> None:
    routing = Routing()
    placement = routing.send(LARGE_BLOCKS, 1.0)
    routing.later.run()
    placement.first_token(2.0)
    placement.finished(2.001)
    assert routing.later.delays == [BATCH_DELAY_S]


def test_batches_at_once_are_spaced() -> None:
    routing = Routing()
    routing.send(LARGE_BLOCKS, 1.0)
    routing.later.run()
    routing.send(LARGE_BLOCKS, 1.0005)
    assert routing.later.delays == [EARLY_SPACING_S - 0.0005]


@pytest.mark.parametrize("blocks", [SMALL_BLOCKS, LARGE_BLOCKS])
def test_who_sends_much_sends_it_in_ordinary_batches(blocks: int) -> None:
    routing = Routing()
    for step in range(100):
        routing.send(blocks, 1.0 + 0.003 * step)
        if routing.later.armed[0][0] < BATCH_DELAY_S:
            routing.later.run()
    assert routing.batches <= MAX_EARLY_BATCHES + 3
    assert routing.later.delays == [BATCH_DELAY_S]
    routing.later.run()
    routing.send(blocks, 3.0)  # after a rest
    assert routing.later.delays == [0.0]


def test_many_small_requests_do_not_hold_up_a_large_one() -> None:
    routing = Routing()
    for step in range(100):
        routing.send(SMALL_BLOCKS, 1.0 + 0.003 * step)
        if routing.later.armed[0][0] < BATCH_DELAY_S:
            routing.later.run()
    routing.send(LARGE_BLOCKS, 1.3)
    assert routing.later.delays == [0.0]


def test_an_allowance_is_spent_and_comes_back() -> None:
    allowance = Allowance(0.01, 4)
    assert [allowance.spend(5.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert not allowance.spend(5.009)
    assert allowance.spend(5.03)
    asked = [allowance.spend(6.0 + 0.008 * turn) for turn in range(60)]
    assert all(asked[:4])
    assert not any(asked[20:])  # who asks too often all the time gets nothing


async def test_a_request_is_told_and_read_without_waiting_for_company(
    node: Callable[..., Awaitable[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.state.outbox.BATCH_DELAY_S", 60.0)
    monkeypatch.setattr("router.state.sync.TICK_INTERVAL_S", 60.0)
    monkeypatch.setattr("router.state.redis_transport.BUSY_READ_INTERVAL_S", 60.0)
    a, b = await node(), await node()
    for _ in range(3):
        sent = chain(LARGE_BLOCKS)
        a.place(sent)
        await until(partial(b.holds, sent))
