"""Several routers' queues that tell each other: every way out frees the gates of all of them.

Their real placers, queues and outboxes, the bytes of batches between them, and no sockets: what is
told may come late, in any order of routers, and not at all from one that is lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config.queueing import QueueSettings
from router.index import ByteIndex
from router.policies.random_choice import RandomChoice
from router.prompt.prompt import Prompt
from router.prompt.spans import SPANS
from router.queue.peers import PeerQueues
from router.queue.queue import Queue
from router.queue.ticket import Refusal, State, Ticket
from router.scheduling.placer import Placement, Placer
from router.state.chain_dictionary import ChainDictionary
from router.state.outbox import Outbox
from router.state.peers import PEER_LEASE_S, Peers
from router.state.queue_facts import QueueTeller
from router.types import Load

REPLICAS = 2
KEYS = {slot: 1000 + slot for slot in range(REPLICAS)}
LIVE = (State.SENT, State.ANSWERING)


class NoTimer:
    """Batches are taken when the test says so."""

    def cancel(self) -> None: ...


class NoFacts:
    """Nothing is told of replicas here."""

    def apply_peer_forgot(self, slot: int, asked: bool) -> None: ...
    def apply_peer_resized(self, slot: int, tokens: int) -> None: ...
    def apply_peer_kept(self, slot: int, key: int) -> None: ...


class Client:
    """Owns a request at one router."""

    def __init__(self, router: Router, blocks: int) -> None:
        self.router = router
        self.chain = array("Q", range(router.next_block, router.next_block + blocks))
        router.next_block += blocks
        self.size = SPANS[blocks] + 1
        self.ticket: Ticket

    def prompt(self) -> Prompt:
        return Prompt(model="m", chain=self.chain, size=self.size, stream=self.ticket.stream)

    def eligible(self) -> int:
        return self.router.eligible

    def uncached(self) -> float:
        return self.router.placer.uncached(self.prompt())

    def tail_digest(self, blocks: int, length: int) -> int:
        return -1

    def place(self, eligible: int, now: float) -> Placement:
        return self.router.placer.place(self.prompt(), eligible, now)

    def unplace(self, placement: Placement, now: float) -> None:
        placement.failed(now)

    def send(self, placement: Placement, now: float) -> None: ...

    def refuse(self, refusal: Refusal, now: float) -> None: ...


class Router:
    """One router, and the batches of the others that have not come yet."""

    def __init__(self, number: int, **queue: object) -> None:
        self.number = number
        self.next_block = number * 1_000_000
        self.eligible = (1 << REPLICAS) - 1
        self.lost = False
        self.clients: list[Client] = []
        self.coming: list[bytes] = []
        loads = [Load(prefill_rate=1000.0, kv_capacity=10_000.0) for _ in range(REPLICAS)]
        index = ByteIndex(SPANS[:100])
        for slot in range(REPLICAS):
            index.add_replica(slot, 1 << 20)
        self.placer = Placer(index, RandomChoice(seed=number), loads, learn_speed=False)
        dictionary = ChainDictionary()
        self.outbox = Outbox(number, dictionary, KEYS, lambda _, __: NoTimer())
        self.outbox.tells_queue = True
        self.placer.listener = self.outbox
        slots = {key: slot for slot, key in KEYS.items()}
        self.peers = Peers(self.placer, self.outbox, dictionary, slots, NoFacts())
        self.calls: list[tuple[float, Callable[[float], None]]] = []
        self.queue = Queue(
            loads,
            QueueSettings(**queue),  # type: ignore[arg-type]
            wake=lambda at, call: self.calls.append((at, call)),
            seed=number,
        )
        self.queue.listener = QueueTeller(self.queue, self.outbox)
        self.peers.queues = PeerQueues(self.queue)
        for _ in range(20):  # what begins like anything is known to go on
            self.queue.door.sessions.beginnings.began(0)
            self.queue.door.sessions.beginnings.went_on(0)
        self.queue.tick(0.0)

    def tick(self, now: float) -> None:
        due = [call for call in self.calls if call[0] <= now]
        self.calls = [call for call in self.calls if call[0] > now]
        for _, call in due:
            call(now)
        self.peers.expire(now)
        self.queue.tick(now)

    def in_state(self, *states: State) -> list[Client]:
        return [client for client in self.clients if client.ticket.state in states]

    def end(self, client: Client, now: float) -> None:
        placement = client.ticket.placement
        assert placement is not None
        placement.finished(now)
        self.queue.ended(client.ticket, now, 10.0)

    def leave(self, client: Client, now: float) -> None:
        placement = client.ticket.placement
        if client.ticket.state in LIVE:
            assert placement is not None
            placement.failed(now)
        self.queue.gone(client.ticket, now)

    def fail(self, client: Client, now: float) -> None:
        placement = client.ticket.placement
        assert placement is not None
        placement.failed(now)
        self.queue.again(client.ticket, now)


def pass_on(routers: list[Router], teller: Router) -> None:
    """What it has to tell is on its way to the others."""
    while (batch := teller.outbox.take()) is not None:
        for other in routers:
            if other is not teller:
                other.coming.append(batch)


def deliver(router: Router, now: float) -> None:
    """What is on its way to it comes."""
    for batch in router.coming:
        router.peers.apply(batch, now)
    router.coming.clear()


def check_empty(router: Router) -> None:
    queue = router.queue
    assert not queue.waiting
    for gate in queue.gates:
        assert (gate.sent, gate.running, gate.others_sent) == (0, 0, 0)
        left = gate.sent_tokens, gate.running_tokens, gate.others_sent_tokens
        assert left == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
        assert not gate.others_waiting
    for load in queue.loads:
        assert load.in_flight == 0
        assert load.queued_tokens == pytest.approx(0.0, abs=1e-6)
    sessions = queue.door.sessions
    assert sessions.count == sessions.idle_count
    for books in sessions._books:
        assert books.active == pytest.approx([0.0, 0.0], abs=1e-6)


ACTIONS = (
    "ask", "ask", "ask", "ask", "first", "first", "end", "leave", "fail", "tell", "tell", "hear",
    "hear", "hear", "time", "long", "out", "back", "roll", "lose",
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_way_out_frees_the_gates_of_all_routers(data: st.DataObject) -> None:
    draw = data.draw
    door = draw(st.sampled_from((0.0, 0.3, 0.9)))
    timeout = draw(st.sampled_from((0.0, 20.0)))
    count = draw(st.integers(2, 4))
    routers = [Router(n + 1, queue_door=door, queue_timeout=timeout) for n in range(count)]
    now = 0.0
    for _ in range(draw(st.integers(1, 60))):
        now += 0.01
        router = draw(st.sampled_from(routers))
        if router.lost:
            continue
        action = draw(st.sampled_from(ACTIONS))
        if action == "ask":
            client = Client(router, draw(st.sampled_from((1, 10, 60))))
            client.ticket = Ticket(
                client,
                now,
                client.chain,
                client.size,
                stream=draw(st.booleans()),
                tenant=draw(st.sampled_from(("", "a", "b"))),
                priority=draw(st.sampled_from((-1, 0, 1))),
                session=draw(st.sampled_from(("", "01" * 16, "02" * 16))),
                limit=draw(st.sampled_from((0.0, 0.5))),
            )
            router.clients.append(client)
            router.queue.offer(client.ticket, now)
        elif action == "tell":
            pass_on(routers, router)
        elif action == "hear":
            deliver(router, now)
        elif action in ("time", "long"):
            now += 0.5 if action == "time" else 30.0
            for each in routers:
                if action == "long" and not each.lost:
                    each.outbox.send_in_flight()  # the roll, as is called twice a second
                    pass_on(routers, each)
                    deliver(each, now)
            for each in routers:
                if not each.lost:
                    each.tick(now)
        elif action == "out":
            router.eligible = 1
            router.queue.replica_out(1, now)
        elif action == "back":
            router.eligible = 3
        elif action == "roll":
            router.outbox.send_in_flight()
        elif action == "lose" and sum(not each.lost for each in routers) > 1:
            # Killed: what it had not told stays untold, and it is told nothing more.
            router.lost = True
        elif action in ("first", "end", "leave", "fail"):
            states = {
                "first": (State.SENT,),
                "end": LIVE,
                "leave": tuple(each for each in State if each is not State.OVER),
                "fail": (State.SENT,),
            }[action]
            those = router.in_state(*states)
            if those:
                client = draw(st.sampled_from(those))
                if action == "first" and client.ticket.stream:
                    placement = client.ticket.placement
                    assert placement is not None
                    placement.first_token(now)
                    router.queue.first_token(client.ticket, now)
                elif action == "end":
                    router.end(client, now)
                elif action == "leave":
                    router.leave(client, now)
                elif action == "fail":
                    router.fail(client, now)
    live = [each for each in routers if not each.lost]
    # Everybody leaves, all is told and heard, and who is lost has been silent for too long.
    for each in live:
        while left := each.in_state(*(state for state in State if state is not State.OVER)):
            each.leave(left[0], now)
        pass_on(routers, each)
    for _ in range(4):
        for each in live:
            deliver(each, now)
            each.outbox.send_in_flight()
            pass_on(routers, each)
        now += PEER_LEASE_S / 2
    for each in live:
        deliver(each, now)
        each.tick(now)
        check_empty(each)
