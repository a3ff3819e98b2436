"""What other routers tell of their requests, in this router's queue."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import World

from router.queue.peers import PeerQueues
from router.queue.session import Tail
from router.queue.ticket import State
from router.scheduling.peer_request import PeerRequest
from router.state.codec import NO_SESSION, QueuedRequest
from router.state.peer_tickets import PeerTickets


def test_two_routers_that_wait_for_each_other_do_so_for_one_tick() -> None:
    world = World(replicas=1, queue_door=0.0)
    queue, peers = world.queue, PeerQueues(world.queue)
    queue.came(0, "theirs", 0.0)
    queue.turns(0).charge("mine", 100.0)
    # As seen from here it is the other tenant's turn, whose request is held at another router.
    # That one has counted otherwise, and waits for this one.
    peers.held(0, 0, "theirs", 100.0)
    asker = world.ask(tenant="mine")
    assert asker.ticket.state is State.HELD
    world.turn_to(0.5)
    assert asker.ticket.state is State.SENT
    # What waits there still does: the next one asks for its turn again.
    peers.held(0, 0, "theirs", 50.0)
    world.first_token(asker)
    following = world.ask(tenant="mine")
    assert following.ticket.state is State.HELD
    peers.unheld(0, 0, "theirs", 100.0, 1.0)
    assert following.ticket.state is State.HELD
    peers.unheld(0, 0, "theirs", 50.0, 1.0)
    assert following.ticket.state is State.SENT
    assert not queue.gate(0).others_waiting


def test_a_better_priority_is_placed_by_what_is_before_it() -> None:
    world = World(queue_door=0.0)
    for each in (0, 1):
        world.ask(1000.0 + each, priority=-1)
    low = [world.ask(tokens, priority=1) for tokens in (300.0, 400.0)]
    assert all(one.ticket.state is State.HELD for one in low)
    PeerQueues(world.queue).held(1, 1, "", 50.0)
    # As the placer charges them.
    for load, tokens in zip(world.loads, (1300.0, 1451.0), strict=True):
        load.queued_tokens = load.kv_tokens = tokens
        load.busy_until = tokens / 1000.0
    charged = [(2, 1300.0, 1.3), (2, 1451.0, 1.451)]
    high = world.ask(priority=-1)
    assert high.saw == [(1, 1000.0, pytest.approx(1.0)), (1, 1001.0, pytest.approx(1.001))]
    assert world.ask(priority=0).saw[1][:2] == (1, 1001.0)
    # Who has nothing behind it sees all, and nothing has changed.
    seen = world.ask(priority=1).saw
    assert [each[1:] for each in seen] == [pytest.approx(each[1:]) for each in charged]
    assert [load.kv_tokens for load in world.loads] == [1300.0, 1451.0]


def test_a_session_in_progress_is_placed_by_all_that_waits() -> None:
    world = World(replicas=1)
    first = world.ask(priority=-1, session="s")
    world.ask(1000.0, priority=-1)
    assert world.ask(300.0, priority=1).ticket.state is State.HELD
    world.loads[0].queued_tokens = 1400.0
    world.end(first)
    assert world.ask(priority=-1, session="s").saw[0][1] == 1400.0
    assert world.ask(priority=-1, session="other").saw[0][1] == 1100.0


STEPS = ("placed", "sent", "first_token", "finished", "ended", "left", "kept")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_told_everything_is_taken_back(data: st.DataObject) -> None:
    """In any order, with facts missing: once a router is lost, nothing of it is charged."""
    draw = data.draw
    world = World(replicas=2)
    queue = world.queue
    tickets = PeerTickets(PeerQueues(queue))
    for step in range(draw(st.integers(1, 40))):
        now = float(step)
        serial, slot = draw(st.integers(1, 5)), draw(st.integers(0, 1))
        what = draw(st.sampled_from(STEPS))
        if what == "placed":
            name = draw(st.integers(0, 3))
            session = bytes([name]) * 16 if name else NO_SESSION
            request = PeerRequest(slot, 400, 100.0, 100.0, array("Q", [7]), 1)
            request.first = draw(st.booleans())
            held = draw(st.booleans())
            told = QueuedRequest(serial, draw(st.integers(-1, 1)), held, 500.0, session, "t")
            tickets.placed(serial, request, told, now)
        elif what == "sent":
            tickets.sent(serial, now)
        elif what == "first_token":
            tickets.first_token(serial, now)
        elif what == "finished":
            tickets.finished(serial, now)
        elif what == "ended":
            own = draw(st.sampled_from((None, 50.0, 700.0)))
            end = draw(st.sampled_from((None, Tail(1, 2, 3))))
            tickets.ended(serial, own, end, now)
        elif what == "left":
            tickets.left(slot, now)
        else:
            tickets.keep({serial}, now)
    tickets.keep(set(), 50.0)
    assert not len(tickets)
    for gate in queue.gates:
        assert gate.others_sent == 0
        assert gate.others_sent_tokens == 0.0
        assert not gate.others_waiting
    sessions = queue.door.sessions
    assert sessions.count == sessions.idle_count
    for books in sessions._books:
        assert books.active == pytest.approx([0.0, 0.0])
    # In time those that had an answer are forgotten, too.
    for later in range(20):
        sessions.tick(1e4 * (later + 1))
    assert sessions.count == 0
    for books in sessions._books:
        assert books.idle_wanted == pytest.approx(0.0)
