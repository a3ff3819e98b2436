"""What live traffic tells: breakers, masks and the last resort. Cooldowns pass by tick()."""

from __future__ import annotations

import asyncio
import time

import pytest
from fleet_engines import StartEngine, StartFleet, metrics_text, models_json

from router.fleet.health import LOOP_STATUS

LONG = 1000.0


async def test_failures_open_the_breaker_and_a_trial_closes_it(
    engine: StartEngine, fleet: StartFleet
) -> None:
    running = await fleet(await engine(), await engine(), breaker_cooldown=LONG)
    now = time.monotonic()
    for reason in ("timeout", "died"):
        running.failed(0, reason, now)
    assert running.usable == 3
    running.failed(0, "status", now)
    assert (running.usable, running.half_open) == (2, 0)
    faults = running.members()[0].faults
    assert (faults.timeout, faults.died, faults.status, faults.connect) == (1, 1, 1, 0)
    running.tick(now + LONG + 1.0)  # more than rounding takes away
    assert (running.usable, running.half_open) == (3, 1)
    running.admitted(0)
    assert (running.usable, running.half_open) == (2, 0)
    running.succeeded(0, now + LONG)
    assert (running.usable, running.half_open) == (3, 0)


async def test_silence_opens_no_breaker_while_health_is_good(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server, breaker_failures=1, breaker_cooldown=LONG, health_timeout=0.5)
    for _ in range(5):
        running.failed(0, "silent", time.monotonic())
    replica = running.members()[0]
    assert (running.usable, replica.faults.silent) == (1, 5)
    # A trial that ends so has proved nothing, and the next one may go.
    running.failed(0, "died", time.monotonic())
    running.tick(time.monotonic() + LONG)
    running.admitted(0)
    assert running.usable == 0
    running.failed(0, "silent", time.monotonic())
    assert (running.usable, running.half_open) == (1, 1)
    running.succeeded(0, time.monotonic())
    # Its probes fail too: it counts.
    server.frozen = frozenset({"/health"})
    assert await running.until(lambda: replica.health.suspect or not running.usable, 20)
    running.failed(0, "silent", time.monotonic())
    assert running.usable == 0


async def test_a_dead_engine_is_out_at_once_and_health_is_asked_soon(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server, health_interval=600.0, breaker_cooldown=LONG)
    running.failed(0, "engine", time.monotonic())
    replica = running.members()[0]
    assert (running.usable, replica.faults.engine) == (0, 1)
    await server.asked_again("/health", 1)


async def test_whether_a_replica_works_and_how_long_it_is_away(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=metrics_text(running=2))
    running = await fleet(server, health_timeout=0.5)
    assert await running.until(lambda: running.works(0), 20)
    assert running.away(0) == 0.0
    server.metrics = metrics_text(running=0)
    assert await running.until(lambda: not running.works(0), 20)
    server.metrics = metrics_text(running=2)
    assert await running.until(lambda: running.works(0), 20)
    server.frozen = frozenset({"/health"})
    assert await running.until(lambda: not running.usable, 20)
    assert not running.works(0)
    assert running.away(0) > 0.0
    running.remove(server.url)
    assert (running.works(0), running.away(0)) == (False, 0.0)


async def test_a_failed_trial_opens_it_again_and_a_withdrawn_one_frees_it(
    engine: StartEngine, fleet: StartFleet
) -> None:
    running = await fleet(await engine(), breaker_cooldown=10.0)
    now = time.monotonic()
    for _ in range(3):
        running.failed(0, "status", now)
    running.tick(now + 10.1)
    running.admitted(0)
    running.withdrawn(0)
    assert (running.usable, running.half_open) == (1, 1)
    running.admitted(0)
    running.failed(0, "status", now + 11)
    assert (running.usable, running.half_open) == (0, 0)
    running.tick(now + 30)
    assert running.usable == 0
    running.tick(now + 31.1)
    assert (running.usable, running.half_open) == (1, 1)


async def test_a_healthy_probe_does_not_close_a_breaker(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server, breaker_cooldown=LONG)
    for _ in range(3):
        running.failed(0, "status", time.monotonic())
    await server.asked_again("/health", 3)
    assert running.usable == 0


async def test_no_connection_takes_it_out_at_once_and_a_probe_brings_it_back(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server, health_interval=600.0)
    for _ in range(3):
        running.failed(0, "status", time.monotonic())
    await server.stop()
    running.failed(0, "connect", time.monotonic())
    replica = running.members()[0]
    assert (running.usable, replica.state, replica.faults.connect) == (0, "unhealthy", 1)
    assert "live traffic" in replica.health.reason


async def test_a_probe_is_hurried_by_live_traffic(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine()
    running = await fleet(server, health_interval=600.0, slow_start=600.0)
    assert running.loads[0].weight == 1.0
    for _ in range(3):
        running.failed(0, "status", time.monotonic())
    running.failed(0, "connect", time.monotonic())
    assert running.usable == 0
    assert await running.until(lambda: running.usable == 1, 20)
    # back in the fleet: slow start, and the breaker begins anew
    assert running.loads[0].weight < 0.2
    assert running.half_open == 0


async def test_last_resort_prefers_open_breakers_over_slow_ones(
    engine: StartEngine, fleet: StartFleet
) -> None:
    failing, slow, dead = await engine(), await engine(), await engine()
    other = await engine(models=models_json("other"))
    running = await fleet(failing, slow, dead, other, breaker_cooldown=LONG, health_timeout=0.5)
    assert running.usable == 0b1111
    slow.frozen = frozenset({"/health"})
    await dead.stop()
    assert await running.until(lambda: running.usable == 0b1001, 20)
    for _ in range(3):
        running.failed(0, "status", time.monotonic())
    assert running.usable & running.serving("m") == 0
    assert running.last_resort("m") == 0b0001
    assert running.last_resort("unknown") == 0
    running.drain(failing.url)
    assert running.last_resort("m") == 0b0010
    running.remove(slow.url)
    assert running.last_resort("m") == 0


async def test_one_that_answers_unwell_is_no_last_resort(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server)
    server.health_status = 503
    assert await running.until(lambda: running.usable == 0, 10)
    assert running.members()[0].health.reason == "/health answered 503"
    assert running.last_resort("m") == 0


async def test_a_router_that_finds_itself_says_so_though_it_was_away_before(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture
) -> None:
    one = await engine()
    one.health_status = 503
    made = await fleet(one)
    replica = made.members()[0]
    assert await made.until(lambda: bool(replica.health.reason), 10)
    one.health_status = LOOP_STATUS
    async with asyncio.timeout(20):
        while "leads back to this router itself" not in caplog.text:
            await one.asked_again("/health", 1)
    assert caplog.text.count("leads back") == 1
