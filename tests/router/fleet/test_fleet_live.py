"""A running fleet over real sockets: active health, models, metrics, restarts."""

from __future__ import annotations

import json
import logging

import pytest
from fleet_engines import Engine, StartEngine, StartFleet, metrics_text, models_json

from router.config import Settings
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica


class Diary(FleetListener):
    def __init__(self) -> None:
        self.emptied: list[str] = []
        self.resized: list[tuple[str, int]] = []

    def on_emptied(self, replica: Replica) -> None:
        self.emptied.append(replica.name)

    def on_resized(self, replica: Replica) -> None:
        self.resized.append((replica.name, replica.remembered_tokens))


async def test_ready_with_models_and_sizes_after_the_first_round(
    engine: StartEngine, fleet: StartFleet
) -> None:
    one = await engine(models=models_json("base", "lora"))
    other = await engine(models=models_json("base"), metrics=metrics_text(blocks=50))
    running = await fleet(one, other)
    assert running.usable == 3
    assert (running.serving("base"), running.serving("lora"), running.serving("no")) == (3, 1, 0)
    assert running.models_known
    listed = json.loads(running.models_body())
    assert [card["id"] for card in listed["data"]] == ["base", "lora"]
    assert [r.kv_tokens for r in running.members()] == [16_000, 800]
    assert [load.weight for load in running.loads] == [1.0, 1.0]


async def test_a_dead_replica_at_start_is_a_warning_and_comes_in_later(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture
) -> None:
    alive, dead = await engine(), await engine()
    await dead.stop()
    running = await fleet(alive, dead, slow_start=600.0)
    assert (running.usable, running.serving("m"), running.serving("")) == (1, 1, 3)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(dead.port) in warnings[0]
    assert "refused" in warnings[0]
    diary = Diary()
    running.listen(diary)
    await dead.start()
    assert await running.until(lambda: running.usable == 3, 10)
    assert running.serving("m") == 3
    # it is new in a running fleet: slowly, but nothing was lost with it
    assert running.loads[0].weight == 1.0
    assert running.loads[1].weight < 0.5
    assert diary.emptied == []


async def test_nothing_known_is_told_from_nobody_serves(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(models_status=500)
    running = await fleet(server)
    assert (running.usable, running.serving("m"), running.models_known) == (1, 0, False)
    server.models_status = 200
    assert await running.until(lambda: running.models_known, 10)
    assert running.serving("m") == 1


async def test_a_frozen_replica_delays_no_other(engine: StartEngine, fleet: StartFleet) -> None:
    everything = frozenset({"/health", "/metrics", "/v1/models"})
    frozen = [await engine(frozen=everything) for _ in range(3)]
    alive = await engine()
    settings = Settings(
        replicas=tuple(e.url for e in [*frozen, alive]), health_timeout=60.0, health_interval=0.02
    )
    running = Fleet(settings)
    await running.start()
    try:
        assert await running.until(lambda: running.usable == 0b1000, 10)
        assert not await running.wait_first_round(0.01)
        await alive.asked_again("/health", 4)
        assert all(e.asked["/health"] <= 1 for e in frozen)
    finally:
        await running.stop()


async def test_slow_models_and_metrics_do_not_touch_health(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server, health_timeout=1.0)
    server.drip = frozenset({"/metrics", "/v1/models"})
    await server.asked_again("/health", 6)
    assert (running.usable, running.serving("m")) == (1, 1)


@pytest.mark.parametrize("way", ["dead", "frozen"])
async def test_a_replica_that_dies_is_out_without_any_traffic(
    engine: StartEngine, fleet: StartFleet, way: str
) -> None:
    server, other = await engine(), await engine()
    running = await fleet(server, other, health_timeout=0.5)
    if way == "dead":
        await server.stop()
    else:
        server.frozen = frozenset({"/health"})
    assert await running.until(lambda: running.usable == 2, 20)
    assert running.members()[0].state == "unhealthy"


async def test_a_flapping_replica_is_followed_and_told_of_once_each_time(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = await engine()
    running = await fleet(server)
    for _ in range(2):
        server.health_status = 500
        assert await running.until(lambda: running.usable == 0, 10)
        server.health_status = 200
        assert await running.until(lambda: running.usable == 1, 10)
    said = [r.getMessage().split(": ", 1)[1] for r in caplog.records]
    transitions = [line for line in said if line.startswith(("ready", "unhealthy"))]
    assert transitions == ["ready", *["unhealthy: /health answered 500", "ready"] * 2]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_replica_that_tells_no_models_serves_any_and_is_told_of_once(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    servers = [await engine(models_status=status) for _ in range(3)]
    running = await fleet(*servers)
    assert (running.serving("x"), running.models_known, running.models_body()[-4:]) == (
        7,
        True,
        b":[]}",
    )
    await servers[0].asked_again("/v1/models", 2)
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "replica_api_key" in said[0]


async def test_the_key_opens_models(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine(key="sesame")
    assert (await fleet(server)).serving("x") == 1
    assert (await fleet(server, replica_api_key="sesame")).serving("x") == 0


async def test_models_are_followed(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine()
    running = await fleet(server)
    server.models = models_json("m", "adapter")
    assert await running.until(lambda: running.serving("adapter") == 1, 10)
    server.models = b"<html>"
    await server.asked_again("/v1/models", 2)
    assert running.serving("adapter") == 1
    server.models = models_json("other")
    assert await running.until(lambda: running.serving("m") == 0, 10)


@pytest.mark.parametrize("models", [b"x" * 2_000_000, b"{}", b"\xff\xfe"])
async def test_unreadable_models_are_told_and_serve_nothing(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture, models: bytes
) -> None:
    running = await fleet(await engine(models=models))
    assert (running.usable, running.serving("m"), running.models_known) == (1, 0, False)
    assert any("models cannot be read" in r.getMessage() for r in caplog.records)


async def test_the_size_of_the_cache_is_followed_unless_it_is_set(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=metrics_text(blocks=None))
    running = await fleet(server, kv_cache_guess=123)
    fixed = await fleet(server, kv_cache_tokens=55)
    diary, silent = Diary(), Diary()
    running.listen(diary)
    fixed.listen(silent)
    replica = running.members()[0]
    assert (replica.kv_tokens, replica.kv_tokens_known) == (123, False)
    server.metrics = metrics_text(blocks=10)
    assert await running.until(lambda: replica.kv_tokens_known, 10)
    assert diary.resized == [(replica.name, 160)]
    await server.asked_again("/metrics", 5)
    assert (silent.resized, fixed.members()[0].kv_tokens) == ([], 55)


async def comes_back(running: Fleet, server: Engine) -> None:
    await server.stop()
    assert await running.until(lambda: running.usable == 0, 10)
    await server.start()
    assert await running.until(lambda: running.usable == 1, 10)


async def test_a_new_start_time_means_an_empty_cache(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=metrics_text(started=100.0))
    running, diary = await fleet(server), Diary()
    running.listen(diary)
    await comes_back(running, server)
    assert diary.emptied == []
    server.metrics = metrics_text(started=200.0)
    await comes_back(running, server)
    assert len(diary.emptied) == 1
    # so fast that no probe saw it
    load = running.members()[0].load
    load.tier_seconds, load.loading_until = 1e-3, 1e9
    server.metrics = metrics_text(started=300.0)
    assert await running.until(lambda: len(diary.emptied) == 2, 10)
    assert running.members()[0].restarts == 2
    assert (load.tier_seconds, load.loading_until) == (0.0, 0.0)


async def test_counters_that_fall_mean_an_empty_cache(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=metrics_text(started=None, queries=100))
    running, diary = await fleet(server), Diary()
    running.listen(diary)
    server.metrics = metrics_text(started=None, queries=5)
    assert await running.until(lambda: len(diary.emptied) == 1, 10)


@pytest.mark.parametrize("metrics_status", [200, 404, 500])
async def test_without_a_start_time_having_refused_means_an_empty_cache(
    engine: StartEngine, fleet: StartFleet, metrics_status: int
) -> None:
    server = await engine(metrics=metrics_text(started=None), metrics_status=metrics_status)
    running, diary = await fleet(server, health_timeout=0.5), Diary()
    running.listen(diary)
    await comes_back(running, server)
    assert len(diary.emptied) == 1
    server.frozen = frozenset({"/health"})
    assert await running.until(lambda: running.usable == 0, 10)
    server.frozen = frozenset()
    assert await running.until(lambda: running.usable == 1, 10)
    assert len(diary.emptied) == 1


async def test_foreign_load_comes_and_goes_and_is_dropped_when_stale(
    engine: StartEngine, fleet: StartFleet
) -> None:
    text = metrics_text(running=6, waiting=4, prompts=1, prompt_tokens=30)
    server = await engine(metrics=text)
    running = await fleet(server)
    load = running.loads[0]
    assert await running.until(lambda: load.in_flight == 10, 10)
    assert load.queued_tokens == 4 * 30
    server.metrics = metrics_text(running=1)
    assert await running.until(lambda: load.in_flight == 1, 10)
    server.metrics_status = 500
    assert await running.until(lambda: load.in_flight == 0, 10)
    assert load.queued_tokens == 0.0
    assert running.usable == 1


async def test_our_own_requests_are_not_foreign(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine()
    running = await fleet(server)
    load = running.loads[0]
    load.in_flight = 6
    server.metrics = metrics_text(running=8)
    assert await running.until(lambda: load.in_flight > 6, 10)
    assert load.in_flight == 8
    # ours end, and the engine's count with them
    load.in_flight -= 6
    server.metrics = metrics_text(running=2)
    await server.asked_again("/metrics", 4)
    assert load.in_flight == 2


async def test_foreign_load_goes_with_the_replica(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine(metrics=metrics_text(running=6))
    running = await fleet(server)
    load = running.loads[0]
    assert await running.until(lambda: load.in_flight == 6, 10)
    await server.stop()
    assert await running.until(lambda: running.usable == 0, 10)
    assert load.in_flight == 0
    await server.start()
    assert await running.until(lambda: load.in_flight == 6, 10)
    running.remove(server.url)
    assert load.in_flight == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metrics_status": 404}, "answered 404"),
        ({"metrics_status": 401}, "answered 401"),
        ({"metrics": b"go_goroutines 5\n"}, "none of vLLM's names"),
        ({"metrics": b""}, "none of vLLM's names"),
    ],
)
async def test_missing_metrics_are_a_flag_and_one_warning(
    engine: StartEngine,
    fleet: StartFleet,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, object],
    says: str,
) -> None:
    server, other = await engine(**fields), await engine(**fields)
    running = await fleet(server, other)
    await server.asked_again("/metrics", 3)
    assert running.usable == 3
    assert all(says in replica.engine_missing for replica in running.members())
    assert len([r for r in caplog.records if says in r.getMessage()]) == 1
    server.metrics, server.metrics_status = metrics_text(), 200
    assert await running.until(lambda: not running.members()[0].engine_missing, 10)


async def test_huge_metrics_are_not_read_and_not_fatal(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=b"x" * 6_000_000)
    running = await fleet(server, metrics_interval=600.0)
    assert running.usable == 1
    assert running.members()[0].engine is None


async def test_an_engine_without_prefix_caching_is_warned_of(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture
) -> None:
    text = metrics_text().replace(b"block_size=", b'enable_prefix_caching="False",block_size=')
    await fleet(await engine(metrics=text))
    assert any("prefix caching is off" in r.getMessage() for r in caplog.records)


async def test_large_fleets_are_read_less_often() -> None:
    fleet = Fleet(Settings(replicas=tuple(f"http://h{i}" for i in range(1000))))
    assert fleet.serving("") == (1 << 1000) - 1
    assert fleet.poll_rate.stretch(1.0) == 2.5
    assert fleet.poll_rate.stretch(0.1) == 0.4  # four times as long at most
    small = Fleet(Settings(replicas=("http://a",)))
    assert small.poll_rate.stretch(1.0) == 1.0
