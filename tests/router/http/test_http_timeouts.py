"""What the regular look at everything open makes of time that passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from http_world import settings_for

from router.http.timeouts import TICK, Sweep


class Buffer:
    """A transport, as far as it is looked at."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_write_buffer_size(self) -> int:
        return self.size


def world(waiting: int) -> tuple[Sweep, SimpleNamespace, Buffer, list[str]]:
    """A sweep, and an exchange that is paused with this much to send."""
    told: list[str] = []
    buffer = Buffer(waiting)
    exchange = SimpleNamespace(
        relay=SimpleNamespace(active=False),
        prompt=None,
        upstream=object(),
        tunnel=False,
        paused=True,
        idle_ticks=0,
        unsent=0,
        client=SimpleNamespace(transport=buffer),
        client_stalled=lambda: told.append("stalled"),
        timed_out=lambda: told.append("timed out"),
    )
    gateway = SimpleNamespace(
        settings=settings_for(chunk_timeout=5 * TICK),
        exchanges={1: exchange}.values(),
        clients=[],
        pools=[],
        live=SimpleNamespace(streams=0),
    )
    return Sweep(cast(Any, gateway)), exchange, buffer, told


def test_a_client_that_reads_slowly_is_not_stalled() -> None:
    sweep, _, buffer, told = world(100_000)
    for _ in range(200):
        buffer.size -= 100
        for _ in range(4):
            sweep.look(0.0)
    assert told == []


def test_a_client_that_does_not_read_is() -> None:
    sweep, _, _, told = world(100_000)
    for _ in range(6):
        sweep.look(0.0)
    assert told == ["stalled"]


def test_what_a_slow_client_delays_is_no_silence_of_the_replica() -> None:
    sweep, exchange, _, told = world(100_000)
    for _ in range(3):
        sweep.look(0.0)
    exchange.paused = False
    exchange.idle_ticks = 0
    for _ in range(5):
        sweep.look(0.0)
    assert told == []
    sweep.look(0.0)
    assert told == ["timed out"]
