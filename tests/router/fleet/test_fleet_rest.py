"""Engines that answer /health and keep requests: asleep, or paused."""

from __future__ import annotations

import pytest
from fleet_engines import StartEngine, StartFleet, metrics_text

from router.fleet.engine_metrics import parse_metrics
from router.fleet.listener import FleetListener
from router.fleet.polling import IS_PAUSED, IS_SLEEPING, rest_of
from router.fleet.reader import Answer
from router.fleet.replica import Replica


def sleep_state(awake: int, level_1: int = 0, engine: int = 0) -> bytes:
    states = (("awake", awake), ("weights_offloaded", level_1), ("discard_all", 0))
    return "".join(
        f'vllm:engine_sleep_state{{engine="{engine}",model_name="m",sleep_state="{name}"}} {value}.0\n'
        for name, value in states
    ).encode()


@pytest.mark.parametrize(
    ("text", "asleep"),
    [
        (metrics_text(), None),
        (sleep_state(1), False),
        (sleep_state(0, 1), True),
        (sleep_state(0, 0), True),  # it wakes in parts
        (sleep_state(1) + sleep_state(0, 1, engine=1), True),
        (sleep_state(1) + sleep_state(1, engine=1), False),
        (b'vllm:engine_sleep_state{sleep_state="awake"}\n', False),
    ],
)
def test_what_metrics_tell_of_sleep(text: bytes, asleep: bool | None) -> None:
    assert parse_metrics(b"# x\n" + text).asleep is asleep


@pytest.mark.parametrize(
    ("status", "body", "rests"),
    [
        (200, b'{"is_paused":true}', True),
        (200, b'{"is_paused":false}', False),
        (200, b'{"is_sleeping":true}', None),
        (200, b'{"is_paused":"true"}', None),
        (200, b"[1]", None),
        (200, b"\xff", None),
        (404, b'{"is_paused":true}', None),
    ],
)
def test_what_is_paused_tells(status: int, body: bytes, rests: bool | None) -> None:
    assert rest_of(IS_PAUSED, Answer(status, body)) is rests


class Emptied(FleetListener):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_emptied(self, replica: Replica) -> None:
        self.names.append(replica.name)


async def test_a_sleeping_engine_gets_nothing_until_it_wakes(
    engine: StartEngine, fleet: StartFleet
) -> None:
    first, second = await engine(), await engine(metrics=metrics_text() + sleep_state(0, 1))
    made = await fleet(first, second)
    one, two = made.members()
    assert (made.usable, two.state) == (one.bit, "sleeping")
    second.metrics = metrics_text() + sleep_state(1)
    assert await made.until(lambda: made.usable == one.bit | two.bit, 10)
    emptied = Emptied()
    made.listen(emptied)
    # It drops its cache for sleep. Alone, it is no last resort either: it would keep what it gets.
    first.metrics = second.metrics = metrics_text() + sleep_state(0, 1)
    assert await made.until(lambda: not made.usable, 10)
    assert sorted(emptied.names) == sorted((one.name, two.name))
    assert made.last_resort("m") == 0
    assert (one.restarts, two.restarts) == (0, 0)


async def test_an_engine_whose_metrics_do_not_tell_is_asked(
    engine: StartEngine, fleet: StartFleet
) -> None:
    paths = {IS_SLEEPING: b'{"is_sleeping":true}', IS_PAUSED: b'{"is_paused":false}'}
    one = await engine(metrics_status=404, more=paths)
    made = await fleet(one)
    replica = made.members()[0]
    assert (made.usable, replica.state) == (0, "sleeping")
    paths |= {IS_SLEEPING: b'{"is_sleeping":false}', IS_PAUSED: b'{"is_paused":true}'}
    assert await made.until(lambda: replica.state == "paused", 10)
    assert made.usable == 0
    paths[IS_PAUSED] = b'{"is_paused":false}'
    assert await made.until(lambda: made.usable == replica.bit, 10)


async def test_an_engine_without_these_paths_is_asked_once(
    engine: StartEngine, fleet: StartFleet
) -> None:
    one = await engine()
    made = await fleet(one)
    await one.asked_again("/metrics", 4)
    assert (one.asked[IS_PAUSED], one.asked[IS_SLEEPING]) == (1, 1)
    # Another engine may be there when it comes back.
    one.health_status = 503
    assert await made.until(lambda: not made.usable, 10)
    one.health_status = 200
    assert await made.until(lambda: bool(made.usable), 10)
    assert one.asked[IS_PAUSED] == 2


async def test_an_engine_told_to_sleep_is_looked_at_at_once(
    engine: StartEngine, fleet: StartFleet
) -> None:
    one = await engine(metrics=metrics_text() + sleep_state(1))
    made = await fleet(one, metrics_interval=3600.0)
    one.metrics = metrics_text() + sleep_state(0, 1)
    made.reread_rest(made.members()[0])
    assert await made.until(lambda: not made.usable, 10)
