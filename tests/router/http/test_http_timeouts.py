"""What the regular look at everything open makes of time that passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from http_world import settings_for

from router.http.state import State
from router.http.timeouts import SWEEP_INTERVAL_S, TimeoutSweep


class Buffer:
    """A transport, as far as it is looked at."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_write_buffer_size(self) -> int:
        return self.size


def world(waiting: int) -> tuple[TimeoutSweep, SimpleNamespace, Buffer, list[str]]:
    """A sweep, and an exchange that is paused with this much to send."""
    told: list[str] = []
    buffer = Buffer(waiting)
    exchange = SimpleNamespace(
        relay=SimpleNamespace(active=False),
        prompt=None,
        upstream=object(),
        state=State.RELAYING,
        paused=True,
        spill=None,
        leg=None,
        idle_ticks=0,
        unsent=0,
        client=SimpleNamespace(transport=buffer),
        placement=SimpleNamespace(slot=0),
        client_stalled=lambda: told.append("stalled"),
        timed_out=lambda: told.append("timed out"),
    )
    fleet = SimpleNamespace(works=lambda _: exchange.works, away=lambda _: exchange.away)
    exchange.works, exchange.away = False, 0.0
    gateway = SimpleNamespace(
        fleet=fleet,
        settings=settings_for(chunk_timeout=5 * SWEEP_INTERVAL_S),
        overflow_pools={},
        pools=[],
        live=SimpleNamespace(streams=0),
    )
    client = SimpleNamespace(exchange=exchange, in_request=False, idle_ticks=0)
    return TimeoutSweep(cast(Any, gateway), [cast(Any, client)]), exchange, buffer, told


def with_defaults(sweep: TimeoutSweep) -> TimeoutSweep:
    """It with the settings as they are by default."""
    gateway = SimpleNamespace(**{**vars(sweep._gateway), "settings": settings_for()})
    return TimeoutSweep(cast(Any, gateway), sweep._clients)


def test_a_client_that_reads_slowly_is_not_stalled() -> None:
    sweep, _, buffer, told = world(100_000)
    for _ in range(200):
        buffer.size -= 100
        for _ in range(4):
            sweep.check(0.0)
    assert told == []


def test_a_client_that_does_not_read_is() -> None:
    sweep, _, _, told = world(100_000)
    for _ in range(6):
        sweep.check(0.0)
    assert told == ["stalled"]


def test_what_a_slow_client_delays_is_no_silence_of_the_replica() -> None:
    sweep, exchange, _, told = world(100_000)
    for _ in range(3):
        sweep.check(0.0)
    exchange.paused = False
    exchange.idle_ticks = 0
    for _ in range(5):
        sweep.check(0.0)
    assert told == []
    sweep.check(0.0)
    assert told == ["timed out"]


def looks_until_told(sweep: TimeoutSweep, told: list[str], most: int = 10_000) -> int:
    for count in range(1, most):
        sweep.check(0.0)
        if told:
            return count
    return most


def test_silence_is_no_death_while_the_engine_says_that_it_works() -> None:
    sweep, exchange, _, told = world(0)
    exchange.paused = False
    exchange.works = True
    assert looks_until_told(sweep, told) * SWEEP_INTERVAL_S == 1800 + SWEEP_INTERVAL_S
    assert told == ["timed out"]


def test_silence_of_a_replica_whose_health_is_bad_is_cut_short() -> None:
    sweep, exchange, _, told = world(0)
    sweep = with_defaults(sweep)
    exchange.paused = False
    exchange.away = 59.0
    assert looks_until_told(sweep, told, 1000) == 1000
    exchange.away = 61.0
    sweep.check(0.0)
    assert told == ["timed out"]


def test_limits_of_silence_by_default() -> None:
    for state in (State.OPENING, State.RELAYING):
        sweep, exchange, _, told = world(0)
        exchange.paused = False
        exchange.state = state
        looks = looks_until_told(with_defaults(sweep), told)
        assert looks * SWEEP_INTERVAL_S == 1800 + SWEEP_INTERVAL_S
