"""Who may begin a session, whom a prompt goes on with, and what sessions are expected to want."""

from __future__ import annotations

import pytest
from queue_world import World

from router.queue.returns import BINS, EDGES, Returns
from router.queue.ticket import State


def test_new_sessions_wait_and_those_in_progress_do_not() -> None:
    world = World(1, queue_door=0.9)
    first = [world.ask(4000.0, session=f"s{number}") for number in range(3)]
    assert [bool(one.sent) for one in first] == [True, True, False]
    assert first[2].ticket.state is State.PARKED
    assert first[2].ticket.wanted_share == pytest.approx(0.8)
    for one in first[:2]:
        world.end(one)
    again = world.ask(4000.0, session="s0")
    assert again.sent
    assert again.ticket.goes_on


def test_the_door_opens_as_sessions_are_forgotten() -> None:
    world = World(1, queue_door=0.9, queue_timeout=0.0)
    first = [world.ask(4000.0, session=f"s{number}") for number in range(3)]
    for one in first[:2]:
        world.end(one)
    now = 0.0
    while not first[2].sent and now < 600.0:
        now += 0.5
        world.turn_to(now)
    # C / P is 10 s: a session that pauses for longer is cheaper computed again.
    assert 0.0 < now <= 10.5


def test_single_requests_pass_the_door() -> None:
    world = World(1, queue_door=0.9)
    asked = [world.ask(4000.0, session=f"s{number}", prefix=99) for number in range(10)]
    assert all(one.sent for one in asked)


def test_single_requests_do_not_shut_sessions_out() -> None:
    world = World(1, queue_door=0.9)
    for _ in range(10):
        world.ask(4000.0, prefix=99)
    assert world.queue.door.ratio(0) == pytest.approx(0.2)
    assert world.ask(4000.0, session="s").sent


def test_there_is_no_door_where_the_memory_is_not_known() -> None:
    world = World(1, queue_door=0.9)
    world.loads[0].kv_capacity = 0.0
    assert all(world.ask(4000.0, session=f"s{number}").sent for number in range(10))


def test_a_session_goes_only_where_there_is_room() -> None:
    world = World(2, queue_door=0.9)
    one = world.ask(8000.0, session="a")
    assert one.ticket.placement is not None
    assert one.ticket.placement.slot == 0
    world.turn = 0  # the placer would take the first replica again
    two = world.ask(8000.0, session="b")
    assert two.ticket.placement is not None
    assert two.ticket.placement.slot == 1
    assert not world.ask(8000.0, session="c").sent


def test_sessions_without_a_key_are_told_by_whole_prompts() -> None:
    world = World(1, queue_door=0.9)
    history = b"a system prompt, a question and so on, "
    first = world.ask(10.0, text=history + b"first")
    world.end(first)
    same = world.ask(10.0, text=history + b"first")
    assert not same.ticket.goes_on  # the very same again is another request
    fork = world.ask(10.0, text=history + b"other")
    assert not fork.ticket.goes_on
    longer = world.ask(10.0, text=history + b"first, its answer, and the next question")
    assert longer.ticket.goes_on
    world.end(longer)
    short = world.ask(10.0, text=history[:15])
    assert not short.ticket.goes_on


def test_the_other_requests_of_a_session_let_in_follow_it() -> None:
    world = World(1, queue_door=0.9)
    full = world.ask(8900.0, session="big")
    parked = [world.ask(2000.0, session="s") for _ in range(2)]
    assert not any(one.sent for one in parked)
    world.end(full, output=0.0)
    world.turn_to(600.0)  # timed out
    assert [each.why for one in parked for each in one.refusals] == ["expired", "expired"]
    world.ask(8900.0, session="big2")
    parked = [world.ask(1000.0, session="s") for _ in range(2)]
    world.leave(world.all[-3])
    assert all(one.sent for one in parked)
    assert world.queue.door.sessions.count == 1


def test_a_pause_counts_as_far_as_it_is_likely_to_end() -> None:
    returns = Returns(came_back_before=True)
    for b, share in ((0, 0.5), (1, 0.5)):
        returns.returned[b], returns.passed[b] = 100.0 * share, 100.0 * (1.0 - share)
    for b in range(2, BINS):
        returns.returned[b], returns.passed[b] = 0.0, 100.0
    returns.update(horizon=10.0)
    assert returns.weights[0] == pytest.approx(0.75)
    assert returns.weights[1] == pytest.approx(0.5)
    assert returns.weights[2:] == [0.0] * (BINS - 2)


def test_a_cache_that_is_cheaper_computed_again_does_not_count() -> None:
    """Half come back in the bin from 16 to 32 s: memory for 24 s on average to save 10 s or less."""
    returns = Returns(came_back_before=True)
    at = EDGES.index(32.0)
    for b in range(BINS):
        share = 0.5 if b == at else 0.0
        returns.returned[b], returns.passed[b] = 100.0 * share, 100.0 * (1.0 - share)
    returns.update(horizon=20.0)
    assert returns.weights == [0.0] * BINS
    returns.update(horizon=60.0)
    assert returns.weights[0] == pytest.approx(0.5)


def test_what_is_wanted_follows_a_session_to_another_replica() -> None:
    world = World(2, queue_door=0.9)
    one = world.ask(4000.0, session="a")
    world.end(one, output=0.0)
    world.turn = 1
    two = world.ask(10.0, session="a")
    assert two.ticket.placement is not None
    assert two.ticket.placement.slot == 1
    sessions = world.queue.door.sessions
    assert sessions.wanted(0, 10_000.0) == 0.0
    assert sessions.wanted(1, 10_000.0) == 4000.0
