"""Batches in order: gaps, replays, restarts, and histories that are gone. No sockets."""

from __future__ import annotations

from typing import Any

import msgspec

from router.kv_events.decode import Batch
from router.kv_events.sequencer import EventSequencer


def payload(number: int, engine: str = "a") -> bytes:
    """A batch that tells its number by its time, and its engine by its rank."""
    return msgspec.msgpack.encode([float(number), [], ord(engine)])


class World:
    """A feed, what came out of it, and an engine's buffer to replay from."""

    def __init__(self, *, replay: bool = True) -> None:
        self.seen: list[Any] = []
        self.asked: list[int] = []
        self.sequencer = EventSequencer("replica", self)
        if replay:
            self.sequencer.ask = self._ask

    def _ask(self, number: int) -> bool:
        self.asked.append(number)
        return True

    def apply(self, batch: Batch) -> None:
        self.seen.append(int(batch.time))

    def empty(self, *, complete: bool) -> None:
        self.seen.append("empty" if complete else "unknown")

    def current(self) -> None:
        pass

    def answer(self, numbers: range, engine: str = "a") -> None:
        """What the engine has, from the number asked for on; nobody hears it to its end who asks
        again."""
        asks = len(self.asked)
        for number in numbers:
            if number >= self.asked[asks - 1]:
                self.sequencer.replayed(number, payload(number, engine))
                if len(self.asked) > asks:
                    return
        self.sequencer.replay_ended()

    def take(self) -> list[Any]:
        seen, self.seen = self.seen, []
        return seen


def caught_up(count: int = 3) -> World:
    world = World()
    world.sequencer.connected()
    world.answer(range(count))
    assert world.take() == ["empty", *range(count)]
    return world


def test_a_late_start_gets_everything_from_the_replay() -> None:
    world = World()
    world.sequencer.connected()
    assert not world.sequencer.current
    world.sequencer.live(2, payload(2))
    world.sequencer.live(3, payload(3))
    assert world.seen == []
    world.answer(range(3))
    assert world.take() == ["empty", 0, 1, 2, 3]
    assert world.sequencer.current
    world.sequencer.live(4, payload(4))
    assert world.take() == [4]
    assert world.asked == [0]


def test_an_engine_that_sent_nothing_yet_has_an_empty_cache() -> None:
    world = World()
    world.sequencer.connected()
    world.answer(range(0))
    assert world.take() == ["empty"]
    assert world.sequencer.current


def test_a_gap_is_filled() -> None:
    world = caught_up()
    world.sequencer.live(6, payload(6))
    assert not world.sequencer.current
    world.sequencer.live(7, payload(7))
    world.answer(range(7))
    assert world.take() == [3, 4, 5, 6, 7]
    assert (world.sequencer.gaps, world.sequencer.rebuilds, world.sequencer.current) == (1, 0, True)


def test_a_gap_beyond_the_buffer_is_learned_anew() -> None:
    world = caught_up()
    world.sequencer.live(9, payload(9))
    for number in (7, 8, 9):
        world.sequencer.replayed(number, payload(number))
    world.sequencer.replay_ended()
    assert world.take() == ["unknown", 7, 8, 9]
    assert world.sequencer.rebuilds == 1


def test_a_hole_in_a_replay_is_asked_for_again() -> None:
    world = World()
    world.sequencer.connected()
    for number in (0, 1, 4):
        world.sequencer.replayed(number, payload(number))
    assert world.take() == ["empty", 0, 1]
    assert world.asked == [0, 1]
    assert not world.sequencer.current
    world.answer(range(6))
    assert world.take() == [2, 3, 4, 5]
    assert (world.sequencer.cuts, world.sequencer.rebuilds, world.sequencer.current) == (1, 0, True)


def test_a_replay_without_an_end_is_asked_for_again() -> None:
    world = World()
    world.sequencer.connected()
    world.sequencer.replayed(0, payload(0))
    world.sequencer.replayed(1, payload(1))
    assert world.sequencer.ask_again()
    assert world.asked == [0, 1]
    assert not world.sequencer.ask_again()
    world.answer(range(2))
    assert world.take() == ["empty", 0, 1]
    assert (world.sequencer.cuts, world.sequencer.rebuilds, world.sequencer.current) == (1, 0, True)


def test_what_was_lost_while_a_replay_was_under_way_is_asked_for_again() -> None:
    world = caught_up()
    world.sequencer.live(4, payload(4))
    world.sequencer.live(7, payload(7))
    world.answer(range(5))
    assert world.take() == [3, 4]
    assert world.asked[-1] == 4
    assert not world.sequencer.current
    world.answer(range(8))
    assert world.take() == [5, 6, 7]
    assert (world.sequencer.rebuilds, world.sequencer.current) == (0, True)


def test_what_no_replay_brings_is_learned_anew() -> None:
    world = World()
    world.sequencer.connected()
    for _ in range(2):
        for number in (0, 2):
            world.sequencer.replayed(number, payload(number))
    assert world.asked == [0, 0]
    world.sequencer.replay_ended()
    assert world.take() == ["empty", 0, "unknown", 2]
    assert (world.sequencer.rebuilds, world.sequencer.current) == (1, True)


def test_a_restart_told_while_a_replay_is_under_way_asks_from_the_first() -> None:
    world = caught_up()
    world.sequencer.live(6, payload(6))
    world.sequencer.replayed(2, payload(2))
    world.sequencer.restarted()
    assert world.asked[-1] == 0
    world.answer(range(2), "b")
    assert world.take() == ["unknown", "empty", 0, 1]
    assert world.sequencer.rebuilds == 0


def test_a_restart_is_seen_by_the_numbers() -> None:
    world = caught_up()
    world.sequencer.live(0, payload(0, "b"))
    assert world.asked[-1] == 2
    world.answer(range(1), "b")  # it has no number 2 yet: another engine
    assert world.asked[-1] == 0
    world.answer(range(1), "b")
    assert world.take() == ["unknown", "empty", 0]
    assert (world.sequencer.restarts, world.sequencer.current) == (1, True)


def test_a_restart_that_caught_up_with_the_numbers_is_seen_by_its_batches() -> None:
    world = caught_up()
    world.sequencer.disconnected()
    assert not world.sequencer.current
    world.sequencer.connected()
    world.answer(range(8), "b")  # 2 is there, and is not the one that was seen
    assert world.asked[-1] == 0
    world.answer(range(8), "b")
    assert world.take() == ["unknown", "empty", *range(8)]
    assert world.sequencer.restarts == 1


def test_coming_back_to_the_same_engine_keeps_what_is_known() -> None:
    world = caught_up()
    world.sequencer.disconnected()
    world.sequencer.connected()
    world.answer(range(5))
    assert world.take() == [3, 4]
    assert world.sequencer.current


def test_a_restart_told_from_outside_forgets_at_once() -> None:
    world = caught_up()
    world.sequencer.restarted()
    assert world.take() == ["unknown"]
    assert not world.sequencer.current
    world.answer(range(2), "b")
    assert world.take() == ["empty", 0, 1]


def test_without_replay_history_is_unknown() -> None:
    world = World(replay=False)
    world.sequencer.connected()
    assert world.take() == ["unknown"]
    assert world.sequencer.current
    world.sequencer.live(17, payload(17))
    world.sequencer.live(18, payload(18))
    assert world.take() == ["unknown", 17, 18]
    world.sequencer.live(20, payload(20))
    assert world.take() == ["unknown", 20]


def test_a_replay_that_never_comes() -> None:
    world = caught_up()
    world.sequencer.live(5, payload(5))
    world.sequencer.replay_failed("silence")
    assert world.take() == ["unknown", 5]
    assert world.sequencer.current


def test_an_unreadable_batch_leaves_nothing_known() -> None:
    world = caught_up()
    world.sequencer.live(3, b"\xc1")
    world.sequencer.live(4, payload(4))
    assert world.take() == ["unknown", 4]
    assert world.sequencer.faults == 1


def test_verify_finds_a_batch_lost_before_a_silence() -> None:
    world = caught_up()
    world.sequencer.verify()
    assert world.asked[-1] == 2
    assert world.sequencer.current  # nothing is known to be missing
    world.answer(range(4))
    assert world.take() == [3]
    world.sequencer.live(4, payload(4))
    world.sequencer.verify()
    assert len(world.asked) == 2


def test_a_restart_during_a_replay_is_seen_with_the_next_batch() -> None:
    world = caught_up()
    world.sequencer.live(9, payload(9))
    world.sequencer.live(0, payload(0, "b"))
    world.answer(range(2, 9))
    world.take()
    world.sequencer.live(1, payload(1, "b"))
    world.answer(range(2), "b")
    world.answer(range(2), "b")
    assert world.take()[-3:] == ["empty", 0, 1]
