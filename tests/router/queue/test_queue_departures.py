"""Who leaves for elsewhere when the fleet is over, against a naive model; and when in a queue."""

from __future__ import annotations

from array import array
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from queue_world import Asker, World

from router.queue.departures import MOST_AT_ONCE, WARM, Departures, Quote
from router.queue.ticket import NOBODY, State, Ticket

TOKENS = 1000.0


class Elsewhere:
    """Takes what is quoted. Money is a request's own."""

    def __init__(self) -> None:
        self.money: dict[int, float] = {}
        """By the ticket's number; what is not here may not leave."""
        self.takes = True
        self.left: list[tuple[int, str]] = []

    def quote(self, ticket: Ticket) -> Quote | None:
        money = self.money.get(ticket.number)
        return None if money is None else Quote(money, TOKENS)

    def send(self, ticket: Ticket, why: str) -> bool:
        if self.takes:
            self.left.append((ticket.number, why))
            ticket.lane = None
        return self.takes


def asked(number: int, priority: int, aim: float = 0.0) -> Ticket:
    ticket = Ticket(NOBODY, 0.0, array("Q"), 1, priority=priority, aim=aim)
    ticket.number = number
    return ticket


# Lane, priority, tenths cached, money or None, and what happens: it waits, another leaves, or it
# finds so many too many.
steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 1),
        st.integers(0, 10),
        st.sampled_from([None, 1.0, 2.0, 2.0, 3.0]),
        st.sampled_from(["waits", "waits", "waits", "goes", 1, 3]),
    ),
    min_size=20,
    max_size=100,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_the_coldest_then_the_cheapest_leaves_as_a_naive_model_says(steps: list[Any]) -> None:
    elsewhere = Elsewhere()
    departures = Departures(elsewhere)
    lanes = [object(), object()]
    waiting: dict[int, tuple[tuple[int, float, int], Ticket]] = {}
    for number, (lane, priority, tenths, money, what) in enumerate(steps, 1):
        ticket = asked(number, priority)
        if money is not None:
            elsewhere.money[number] = money
        uncached = TOKENS * (1.0 - tenths / 10.0)
        key = tenths, 0.0 if money is None else money, -number
        if what == "goes":
            if waiting:
                waiting.pop(next(iter(waiting)))[1].lane = None
            continue
        if what == "waits":
            ticket.lane = lanes[lane]
            waiting[number] = key, ticket
            departures.joins(ticket, uncached)
            continue
        # So many have to leave: the least of those that wait alike, the new one among them.
        alike = {
            each: one
            for each, (one, other) in waiting.items()
            if other.lane is lanes[lane] and other.priority == priority
            and each in elsewhere.money and one[0] < WARM
        }  # fmt: skip
        expected: list[tuple[int, str]] = []
        over = what
        while money is not None and over and len(expected) < MOST_AT_ONCE:
            first = min(alike, key=alike.__getitem__, default=0)
            if first and alike[first] < key:
                expected.append((first, "coldest"))
                del alike[first], waiting[first]
                over -= 1
            else:
                if tenths < WARM:
                    expected.append((number, "full"))
                break
        before = len(elsewhere.left)
        own = departures.make_room(
            ticket, lanes[lane], uncached, "full",
            lambda start=before, most=what: len(elsewhere.left) - start < most,  # type: ignore[misc]
        )  # fmt: skip
        assert elsewhere.left[before:] == expected
        assert own is ((number, "full") in expected)


def test_what_has_left_by_itself_is_not_kept() -> None:
    elsewhere = Elsewhere()
    departures = Departures(elsewhere)
    lane = object()
    for number in range(1, 10_001):
        ticket = asked(number, 0)
        elsewhere.money[number] = 1.0
        ticket.lane = lane
        departures.joins(ticket, TOKENS)
        ticket.lane = None
    (place,) = departures._places.values()
    assert len(place.heap) < 100
    departures.tick(0.0)
    assert not departures._places


class Way:
    """Out of a world's queue."""

    def __init__(self, world: World, takes: bool = True) -> None:
        self.world = world
        self.takes = takes
        self.left: list[tuple[Asker, str]] = []
        self.stays: set[int] = set()

    def quote(self, ticket: Ticket) -> Quote | None:
        asker = cast(Asker, ticket.owner)
        return Quote(asker.tokens, 1000.0) if ticket.number not in self.stays else None

    def send(self, ticket: Ticket, why: str) -> bool:
        if self.takes:
            self.left.append((cast(Asker, ticket.owner), why))
            self.world.queue.left_for_elsewhere(ticket, self.world.now)
        return self.takes


def over(takes: bool = True, **fields: Any) -> tuple[World, Way]:
    """A replica that computes 1,000 tokens a second, and a second of work before it."""
    world = World(1, queue_door=0.0, **fields)
    way = Way(world, takes)
    world.queue.departures = Departures(way)
    world.ask(1000.0, aim=9.0)
    return world, way


def test_one_that_would_be_late_leaves_and_the_next_stays_once_there_is_room() -> None:
    world, way = over()
    late = world.ask(900.0, aim=0.5)
    assert way.left == [(late, "late")]
    assert late.placement is None
    assert not late.refusals
    world.first_token(world.all[0])
    assert world.ask(900.0, aim=0.5).sent
    assert world.queue.outcomes["overflow"] == 1


def test_of_those_that_wait_the_coldest_leaves_for_one_that_is_warmer() -> None:
    world, way = over()
    warm, cold = world.ask(400.0, aim=9.0), world.ask(1000.0, aim=9.0)
    new = world.ask(300.0, aim=1.9)
    assert way.left == [(cold, "coldest")]
    assert world.queue.waiting == 2
    assert {one.ticket.state for one in (warm, new)} == {State.HELD}


def test_what_is_warm_waits_rather_than_leaves() -> None:
    world, way = over()
    warm = world.ask(400.0, aim=0.5)
    assert not way.left
    assert warm.ticket.state is State.HELD
    # Unless it would be refused: then its owner knows where it goes.
    (refusal,) = world.ask(400.0, aim=0.5, limit=0.5).refusals
    assert refusal.why == "late"


def test_one_that_has_waited_for_all_of_its_aim_leaves() -> None:
    world, way = over()
    waits = world.ask(900.0, aim=3.0)
    world.turn_to(2.0)
    assert not way.left
    world.turn_to(3.5)
    assert way.left == [(waits, "late")]
    assert not world.queue.waiting


def test_nobody_leaves_for_one_that_may_not_or_where_nobody_takes_it() -> None:
    world, way = over()
    world.ask(1000.0, aim=9.0)
    way.stays.add(3)
    assert world.ask(600.0, aim=0.5).ticket.state is State.HELD
    assert not way.left
    way.takes = False
    assert world.ask(900.0, aim=0.5).ticket.state is State.HELD
    assert world.queue.waiting == 3


def test_where_no_more_may_wait_the_coldest_makes_room() -> None:
    world, way = over(queue_limit=1)
    cold = world.ask(1000.0, aim=9.0)
    kept = world.ask(300.0, aim=9.0)
    assert way.left == [(cold, "coldest")]
    assert kept.ticket.state is State.HELD
    colder = world.ask(1000.0, aim=9.0)
    assert way.left[1:] == [(colder, "full")]


def test_new_sessions_at_the_door_leave_too() -> None:
    world = World(1)
    way = Way(world)
    world.queue.departures = Departures(way)
    for _ in range(12):
        world.ask(1000.0)
        world.now += 0.1
    parked = world.in_state(State.PARKED)
    assert parked
    new = world.ask(800.0, aim=0.5)
    # The colder ones that wait there go first, as many as it takes.
    assert {why for _, why in way.left} <= {"coldest", "late"}
    assert way.left[0][1] == "coldest"
    assert new.ticket.state in (State.PARKED, State.OVER)
    assert len(world.in_state(State.PARKED)) < len(parked) + 1
