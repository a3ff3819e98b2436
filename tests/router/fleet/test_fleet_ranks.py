"""Data-parallel ranks behind one port: replicas of their own that share what is the port's."""

from __future__ import annotations

import pytest
from fleet_engines import StartEngine, StartFleet, models_json

from router.fleet.engine_metrics import OFFLOAD_TOKEN_BYTES, parse_metrics
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica


def text(
    *running: float, started: float = 1.7e9, first: int = 0, label: str = "", total: int = 0
) -> bytes:
    """Metrics of as many engines; label is put into their cache_config_info."""
    lines = [f"process_start_time_seconds {started}"]
    for rank, value in enumerate(running, first):
        lines.append(f'vllm:num_requests_running{{engine="{rank}",model_name="m"}} {value}')
    for rank, _ in enumerate(running, first):
        lines.append(f'vllm:num_requests_waiting{{engine="{rank}",model_name="m"}} 0.0')
    for rank, _ in enumerate(running, first):
        size = f'num_gpu_blocks="{total}"' if total else f'kv_cache_size_tokens="{1000 + rank}"'
        lines.append(f'vllm:cache_config_info{{block_size="16",{label}engine="{rank}",{size}}} 1.0')
    return ("\n".join(lines) + "\n").encode()


class Diary(FleetListener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_added(self, replica: Replica) -> None:
        self.lines.append(f"+{replica.name[-2:]}")

    def on_removed(self, replica: Replica) -> None:
        self.lines.append(f"-{replica.name[-2:]}")

    def on_emptied(self, replica: Replica) -> None:
        self.lines.append(f"0{replica.name[-2:]}")


def test_each_engines_metrics_are_read_apart_and_summed() -> None:
    told = parse_metrics(text(1, 2, 3))
    assert told.running == 6
    assert told.kv_tokens == 3003
    assert [rank.running for rank in told.ranks] == [1, 2, 3]
    assert [rank.kv_tokens for rank in told.ranks] == [1000, 1001, 1002]
    assert parse_metrics(text(1)).ranks == ()


def test_a_sum_that_each_engine_repeats_is_shared_out() -> None:
    told = parse_metrics(text(0, 0, total=200))
    assert told.kv_tokens == 3200
    assert [rank.kv_tokens for rank in told.ranks] == [1600, 1600]


def test_ranks_are_in_the_order_of_their_numbers() -> None:
    told = parse_metrics(text(*range(8, 13), first=8))
    assert [rank.running for rank in told.ranks] == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("odd", [b"x", b"-1", b""])
def test_engines_without_numbers_are_no_ranks(odd: bytes) -> None:
    told = parse_metrics(text(1, 2).replace(b'engine="1"', b'engine="%b"' % odd))
    assert (told.ranks, told.running) == ((), 3)


def test_a_flood_of_ranks_is_one_engine() -> None:
    assert parse_metrics(text(*[0.0] * 2000)).ranks == ()


def test_the_size_of_a_tier_is_told_in_gib() -> None:
    told = parse_metrics(text(0, label='kv_offloading_size="64.0",'))
    assert told.offload_tokens == (64 << 30) // OFFLOAD_TOKEN_BYTES
    memory = f'kv_cache_memory_bytes="{1000 * 512}",kv_offloading_size="0.5",'
    assert parse_metrics(text(0, label=memory)).offload_tokens == (1 << 29) // 512
    for size in ("None", "nan", "-1", "0", "1e400", ""):
        told = parse_metrics(text(0, label=f'kv_offloading_size="{size}",'))
        assert told.offload_tokens is None


def shown(fleet: Fleet) -> list[tuple[str, int, bytes]]:
    port = fleet.endpoints()[0].name
    return [
        (one.name.removeprefix(port), one.kv_tokens, one.rank_header) for one in fleet.members()
    ]


async def test_each_rank_has_a_slot_and_a_size_of_its_own(
    engine: StartEngine, fleet: StartFleet
) -> None:
    running = await fleet(await engine(metrics=text(0, 0, 0)))
    assert shown(running) == [
        ("", 1000, b"x-data-parallel-rank: 0\r\n"),
        ("@1", 1001, b"x-data-parallel-rank: 1\r\n"),
        ("@2", 1002, b"x-data-parallel-rank: 2\r\n"),
    ]
    assert running.usable == running.serving("m") == running.serving("") == 0b111
    assert [one.bits for one in running.members()] == [0b111] * 3
    assert len(running.endpoints()) == 1


async def test_one_engine_has_no_rank_to_name(engine: StartEngine, fleet: StartFleet) -> None:
    running = await fleet(await engine(metrics=text(0, first=3)))
    assert shown(running) == [("", 1003, b"")]


async def test_load_of_others_is_the_ranks_own(engine: StartEngine, fleet: StartFleet) -> None:
    running = await fleet(await engine(metrics=text(0, 5)))
    assert await running.until(lambda: running.loads[1].in_flight == 5, 10)
    assert running.loads[0].in_flight == 0


async def test_a_port_that_fails_is_out_with_all_its_ranks(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=text(0, 0))
    other = await engine(metrics=text(0))
    running = await fleet(server, other, breaker_failures=2, breaker_cooldown=60.0)
    ranks = next(one for one in running.endpoints() if len(one.ranks) == 2).ranks
    bits = ranks[0].bits
    for rank in ranks:
        running.failed(rank.slot, "died", 0.0)
    assert running.usable & bits == 0
    assert running.usable
    await server.stop()
    assert await running.until(lambda: ranks[1].state == "unhealthy", 10)
    await server.start()
    assert await running.until(lambda: running.usable & bits == bits, 10)


async def test_ranks_are_drained_and_removed_together(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=text(0, 0))
    running, diary = await fleet(server), Diary()
    running.listen(diary)
    assert running.drain(server.url) is running.endpoints()[0]
    assert running.usable == 0
    assert [one.state for one in running.members()] == ["draining"] * 2
    running.undrain(server.url)
    assert running.usable == 0b11
    with pytest.raises(ValueError, match="in the fleet already"):
        running.add(server.url)
    running.remove(server.url)
    assert (running.members(), running.usable, running.serving("m")) == ([], 0, 0)
    assert diary.lines[-2:] == ["-@1", f"-{str(server.port)[-2:]}"]


async def test_a_restart_empties_every_rank_and_may_bring_other_ranks(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=text(0, 0, 0))
    running, diary = await fleet(server), Diary()
    running.listen(diary)
    diary.lines.clear()
    first = str(server.port)[-2:]
    server.metrics = text(0, 0, started=1.8e9)
    assert await running.until(lambda: len(running.members()) == 2, 10)
    assert diary.lines == [f"0{first}", "0@1", "0@2", "-@2"]
    server.metrics = text(0, started=1.8e9)
    assert await running.until(lambda: len(running.members()) == 1, 10)
    assert running.members()[0].rank_header == b""
    assert running.usable == 1


async def test_models_are_of_all_ranks(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine(metrics=text(0, 0))
    running = await fleet(server)
    server.models = models_json("m", "adapter")
    assert await running.until(lambda: running.serving("adapter") == 0b11, 10)
    assert [one.models for one in running.members()] == [("m", "adapter")] * 2
    server.metrics = text(0, 0, 0)
    assert await running.until(lambda: running.serving("adapter") == 0b111, 10)
    server.models_status = 401
    assert await running.until(lambda: running.serving("any") == 0b111, 10)


async def test_a_tier_is_remembered_and_is_no_memory_of_the_gpu(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine(metrics=text(0, label='kv_offloading_size="1.0",'))
    one = (await fleet(server)).members()[0]
    behind = (1 << 30) // OFFLOAD_TOKEN_BYTES
    assert (one.kv_tokens, one.offload_tokens) == (1000, behind)
    assert one.remembered_tokens == 1000 + behind
    assert one.load.kv_capacity == 1000
    one = (await fleet(server, kv_offload_tokens=77, kv_cache_tokens=5)).members()[0]
    assert (one.kv_tokens, one.offload_tokens) == (5, 77)
