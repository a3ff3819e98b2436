"""Lanes and turns, against a list that is sorted anew each time; and what waits when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import Asker, World

from router.queue.lane import Lane
from router.queue.ticket import State
from router.queue.turns import Turns


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_lane_gives_what_a_sorted_list_gives(data: st.DataObject) -> None:
    draw = data.draw
    all_turns: dict[int, Turns] = {each: Turns() for each in (-1, 0, 1)}
    lane = Lane(all_turns.__getitem__, lambda ticket: ticket.expected_own)
    naive: list[Asker] = []
    world = World(queue_door=0.0, queue_depth=1e9, queue_low_kv=0.0)

    def key(asker: Asker) -> tuple[object, ...]:
        ticket = asker.ticket
        counter = all_turns[ticket.priority].counter(ticket.tenant)
        return (ticket.lane_priority, counter, ticket.tenant, ticket.at, ticket.number)

    for _ in range(draw(st.integers(1, 80))):
        action = draw(st.sampled_from(("push", "push", "pop", "remove", "charge")))
        if action == "push":
            asker = world.ask(
                tenant=draw(st.sampled_from("abcd")), priority=draw(st.sampled_from((-1, 0, 1)))
            )
            asker.ticket.at = draw(st.sampled_from((0.0, 1.0, 2.0)))
            asker.ticket.state = State.HELD
            asker.ticket.expected_own = float(draw(st.integers(1, 9)))
            lane.push(asker.ticket)
            naive.append(asker)
        elif action == "charge":
            turns = all_turns[draw(st.sampled_from((-1, 0, 1)))]
            turns.charge(draw(st.sampled_from("abcd")), float(draw(st.integers(1, 5))))
        elif naive:
            head = min(naive, key=key)
            assert lane.head() is head.ticket
            gone = head if action == "pop" else draw(st.sampled_from(naive))
            lane.remove(gone.ticket)
            gone.ticket.state = State.OVER
            naive.remove(gone)
        assert lane.size == len(naive)
        for priority in (-2, -1, 0, 1):
            those = [each.ticket for each in naive if each.ticket.lane_priority <= priority]
            assert lane.ahead(priority) == (len(those), sum(each.expected_own for each in those))
    if not naive:
        assert lane.head() is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "charge"]), st.sampled_from("abc"))))
def test_nobody_saves_up_turns(steps: list[tuple[str, str]]) -> None:
    turns = Turns()
    waits = dict.fromkeys("abc", 0)
    for what, tenant in steps:
        if what == "join":
            busy = [turns.counter(each) for each in "abc" if waits[each]]
            before = turns.counter(tenant)
            turns.joins(tenant)
            if not waits[tenant]:
                assert turns.counter(tenant) == max(before, min(busy, default=turns._last))
            waits[tenant] += 1
        elif what == "leave" and waits[tenant]:
            turns.leaves(tenant)
            waits[tenant] -= 1
        elif what == "charge":
            turns.charge(tenant, 3.0)
    assert turns.waiting == sum(waits.values())


def test_one_class_never_waits_in_a_lane() -> None:
    world = World(1, queue_door=0.0)
    asked = [world.ask(1000.0) for _ in range(50)]
    assert all(one.sent for one in asked)
    assert not world.queue.holds


def test_two_classes_wait_for_what_was_sent() -> None:
    world = World(1, queue_door=0.0, queue_depth=0.4)
    batch = [world.ask(300.0, priority=1) for _ in range(3)]
    fast = world.ask(100.0, priority=-1)
    assert [bool(one.sent) for one in batch] == [True, True, True]  # one class: not held
    assert not fast.sent
    late = world.ask(300.0, priority=1)
    assert not late.sent
    for one in batch[:2]:
        world.first_token(one)
        assert one.sent
    assert fast.sent  # 300 tokens are less than 0.4 s at 1,000 a second
    assert not late.sent
    assert late.ticket.ahead == 1


def test_tenants_take_turns_by_what_they_compute() -> None:
    world = World(1, queue_door=0.0, queue_depth=0.1)
    first = world.ask(100.0, tenant="flood")
    flood = [world.ask(100.0, tenant="flood") for _ in range(10)]
    world.ask(1.0, tenant="other")
    waiting = [world.ask(100.0, tenant="flood") for _ in range(10)]
    other = [world.ask(100.0, tenant="other") for _ in range(3)]
    order: list[str] = []
    for one in (first, *flood):
        world.first_token(one)
    served = world.in_state(State.SENT)
    while served:
        order += [one.ticket.tenant for one in served if one in (*waiting, *other)]
        for one in served:
            world.first_token(one)
        served = world.in_state(State.SENT)
    assert order[:6].count("other") == 3


def test_low_priority_gives_way_where_kv_memory_is_short() -> None:
    world = World(1, queue_door=0.0, queue_low_kv=0.8)
    world.ask(1.0)
    world.queue.read(0, 0.9, world.now)
    batch = world.ask(10.0, priority=1)
    assert not batch.sent
    assert world.ask(10.0, priority=0).sent
    world.queue.read(0, 0.5, world.now)
    assert batch.sent


def test_low_priority_goes_on_when_the_engine_no_longer_says() -> None:
    world = World(1, queue_door=0.0, queue_low_kv=0.8)
    world.ask(1.0)
    world.queue.read(0, 0.9, world.now)
    batch = world.ask(10.0, priority=1)
    assert not batch.sent
    world.turn_to(30.0)
    assert batch.sent


def test_an_answer_that_is_no_stream_frees_its_gate_by_the_clock() -> None:
    world = World(1, queue_door=0.0, queue_depth=0.4)
    world.ask(1.0, tenant="a")
    world.first_token(world.all[0])
    silent = world.ask(1000.0, tenant="a", stream=False)
    held = world.ask(100.0, tenant="b")
    assert silent.sent
    assert not held.sent
    assert world.calls[0][0] == 1.0  # when its prefill should be done
    world.now = 1.0
    world.calls[0][1](1.0)
    assert held.sent


def test_what_waits_for_a_replica_that_leaves_goes_elsewhere_in_order() -> None:
    world = World(2, queue_door=0.0, queue_depth=0.1)
    world.ask(500.0, tenant="a")
    world.ask(500.0, tenant="b")
    held = [world.ask(100.0, tenant="a", priority=0) for _ in range(6)]
    fast = world.ask(100.0, tenant="a", priority=-1)
    assert not any(one.sent for one in (*held, fast))
    world.eligible = 0b01
    world.queue.replica_left(1, world.now)
    assert world.queue.gate(1).lane.size == 0
    assert world.queue.gate(0).lane.size == 7
    world.now = 1.0
    world.first_token(world.all[0])
    sent = []
    while running := world.in_state(State.SENT):
        running = [one for one in running if one.placement.slot == 0]
        if not running:
            break
        sent += running
        for one in running:
            world.first_token(one)
    assert sent == [fast, *held]


def test_a_retry_goes_before_all_others() -> None:
    world = World(1, queue_door=0.0, queue_depth=0.1)
    first = world.ask(200.0, tenant="a")
    world.ask(1.0, tenant="b")
    waiting = world.ask(100.0, priority=-1)
    world.fail(first)
    assert len(first.sent) == 2
    assert not waiting.sent


def test_what_moved_to_another_lane_is_of_that_lane_alone() -> None:
    world = World(replicas=2, queue_door=0.0)
    for _ in range(2):
        world.ask(1000.0, priority=-1)
    world.ask(1000.0, priority=1)  # so that classes come
    held = [world.ask(1000.0) for _ in range(5)]
    lane, other = world.queue.gate(0).lane, world.queue.gate(1).lane
    assert other.size
    stays = lane.head()
    moves = [each.ticket for each in held if each.ticket.lane is lane]
    moves.remove(stays)
    assert moves
    for asker in world.all:
        if asker.ticket in moves:
            asker.eligible = lambda: 2  # type: ignore[method-assign]
    world.queue.replica_out(0, world.now)
    assert all(ticket.lane is other for ticket in moves)
    assert lane.head() is stays
    assert not {id(ticket) for ticket in lane} & {id(ticket) for ticket in moves}


def test_one_that_is_tried_again_does_not_keep_others_from_expiring() -> None:
    world = World(replicas=1, queue_door=0.0, queue_timeout=10.0)
    sent = world.ask(1000.0)
    world.ask(1000.0, tenant="b", priority=-1)
    early = world.ask(1.0)
    late = world.ask(2.0)
    assert early.ticket.state is State.HELD
    assert late.ticket.state is State.HELD
    world.now = 9.0
    early.ticket.since = 9.0  # as when it is placed anew
    world.turn_to(11.0)
    assert late.refusals[0].why == "expired"
    assert not early.refusals
    assert sent.ticket.state is State.SENT


def test_a_prompt_computed_elsewhere_leaves_its_gate_and_not_its_memory() -> None:
    world = World(1)
    asker = world.ask(600.0)
    queue, gate = world.queue, world.queue.gates[0]
    assert (gate.sent_tokens, gate.running_tokens) == (600.0, 600.0)
    queue.relieve(asker.ticket, 0.0)
    assert (gate.sent_tokens, gate.running_tokens) == (1.0, 600.0)
    queue.burden(asker.ticket, 0.1)
    assert (gate.sent_tokens, gate.running_tokens) == (600.0, 600.0)
    queue.relieve(asker.ticket, 0.2)
    queue.first_token(asker.ticket, 0.3)
    assert (gate.sent_tokens, gate.running_tokens) == (0.0, 600.0)
    queue.ended(asker.ticket, 0.4)
    assert (gate.sent_tokens, gate.running_tokens) == (0.0, 0.0)
