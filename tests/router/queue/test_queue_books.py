"""Whatever happens in whatever order, the queue's books say what is so, and return to zero."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import Asker, World

from router.queue.ticket import State

ACTIONS = (
    "ask", "ask", "ask", "ask", "first", "first", "end", "end", "leave", "fail", "time", "long",
    "read", "out", "back",
)  # fmt: skip


def on(asker: Asker, slot: int) -> bool:
    placement = asker.ticket.placement
    return placement is not None and placement.slot == slot


def check(world: World) -> None:
    """Each sum against the requests it is made of."""
    queue = world.queue
    held = world.in_state(State.HELD)
    parked = world.in_state(State.PARKED)
    assert queue.held == len(held)
    assert queue.door.size == len(parked)
    for slot in range(world.replicas):
        gate = queue.gate(slot)
        sent = [one for one in world.in_state(State.SENT) if on(one, slot)]
        running = [one for one in world.in_state(State.SENT, State.ANSWERING) if on(one, slot)]
        assert gate.sent == len(sent)
        assert gate.sent_tokens == sum(one.tokens for one in sent)
        assert gate.running == len(running)
        assert gate.running_tokens == sum(one.tokens for one in running)
        here = [one for one in held if on(one, slot)]
        assert gate.lane.size == len(here)
        assert {one.ticket.number for one in here} == {one.number for one in gate.lane}
        count, tokens = gate.lane.ahead(9)
        assert (count, tokens) == (len(here), sum(one.tokens for one in here))
        # What waits is never stuck: a head that may go has gone.
        head = gate.lane.head()
        if head is not None:
            assert head.placement is not None
            assert gate.sent > 0 or head.priority > 0
    for priority in (-1, 0, 1):
        waiting = [one for one in (*held, *parked) if one.ticket.priority == priority]
        assert queue.turns(priority).waiting == len(waiting)
    for slot, load in enumerate(world.loads):
        placed = world.in_state(State.HELD, State.SENT, State.ANSWERING)
        assert load.in_flight == sum(
            one.placement is not None and one.placement.slot == slot for one in placed
        )
    for one in world.all:
        sent_or_refused = len(one.sent) + len(one.refusals)
        assert sent_or_refused or one.ticket.state in (State.PARKED, State.HELD, State.OVER)
        assert len(one.refusals) <= 1


def settle(world: World) -> None:
    """Everybody leaves. Then nothing may be left anywhere."""
    while running := world.in_state(State.SENT, State.ANSWERING):
        for one in running:
            if one.ticket.state in (State.SENT, State.ANSWERING):
                world.end(one)
    for one in world.in_state(State.PARKED, State.HELD):
        if one.ticket.state in (State.PARKED, State.HELD):
            world.leave(one)
    while running := world.in_state(State.SENT, State.ANSWERING):
        for one in running:
            if one.ticket.state in (State.SENT, State.ANSWERING):
                world.end(one)
    check(world)
    assert not world.queue.waiting
    assert all(one.ticket.state is State.OVER for one in world.all)
    world.turn_to(world.now + 1000.0)
    world.turn_to(world.now + 1000.0)
    sessions = world.queue.door.sessions
    assert sessions.count == sessions.idle_count == 0
    for slot in range(world.replicas):
        assert abs(sessions.wanted(slot, 10_000.0)) < 1e-6
    assert not world.queue._mix.recent
    assert not world.queue.holds
    assert not world.queue._silent.due
    assert not world.queue._arrivals


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_way_out_frees_the_gate(data: st.DataObject) -> None:
    draw = data.draw
    world = World(
        replicas=3,
        queue_door=draw(st.sampled_from((0.0, 0.3, 0.9))),
        queue_timeout=draw(st.sampled_from((0.0, 20.0))),
        queue_limit=draw(st.sampled_from((3, 1000))),
    )

    def at_send(asker: Asker, now: float) -> None:
        """Some fail as they are sent, from within the queue's own call."""
        world.leave(asker)

    def moves_at_send(asker: Asker, now: float) -> None:
        if len(asker.sent) < 3:
            world.fail(asker)

    for _ in range(draw(st.integers(1, 60))):
        action = draw(st.sampled_from(ACTIONS))
        if action == "ask":
            world.ask(
                float(draw(st.sampled_from((1, 50, 300, 900, 4000)))),
                tenant=draw(st.sampled_from(("", "a", "b"))),
                priority=draw(st.sampled_from((-1, 0, 1))),
                stream=draw(st.booleans()),
                session=draw(st.sampled_from(("", "s1", "s2", "s3"))),
                limit=draw(st.sampled_from((0.0, 0.5, 5.0))),
                prefix=draw(st.sampled_from((7, 8))),
                on_send=draw(st.sampled_from((None, None, None, at_send, moves_at_send))),
            )
        elif action == "time":
            world.turn_to(world.now + draw(st.sampled_from((0.1, 0.5, 2.0))))
        elif action == "long":
            world.turn_to(world.now + draw(st.sampled_from((30.0, 90.0))))
        elif action == "read":
            slot = draw(st.integers(0, 2))
            world.queue.read(slot, draw(st.sampled_from((0.0, 0.5, 0.95))), world.now)
        elif action == "out":
            slot = draw(st.integers(0, 2))
            world.eligible &= ~(1 << slot)
            world.queue.replica_out(slot, world.now)
        elif action == "back":
            world.eligible = 7
        else:
            states = {
                "first": (State.SENT,),
                "end": (State.SENT, State.ANSWERING),
                "leave": tuple(each for each in State if each is not State.OVER),
                "fail": (State.SENT,),
            }[action]
            those = world.in_state(*states)
            if those:
                asker = draw(st.sampled_from(those))
                if action == "first":
                    if asker.ticket.stream:
                        world.first_token(asker)
                elif action == "end":
                    world.end(asker)
                elif action == "leave":
                    world.leave(asker)
                else:
                    world.fail(asker)
        check(world)
    settle(world)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_drain_leaves_nobody_at_the_door(seed: int, late: bool) -> None:
    world = World(queue_door=0.3)
    for number in range(20):
        world.ask(2000.0, session=f"s{number + seed}")
    assert world.queue.door.size > 0
    world.queue.drain(world.now)
    assert world.queue.door.size == 0
    if late:
        refused = world.ask(2000.0, session="late")
        assert [each.why for each in refused.refusals] == ["draining"]
    assert {each.why for one in world.all for each in one.refusals} == {"draining"}
    settle(world)
