"""Which engine a replica is, and what is read of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet_engines import StartEngine, StartFleet, metrics_text, models_json

from router.fleet.engines import (
    ENGINES,
    UNKNOWN,
    EngineKind,
    kind_by_metrics,
    kind_by_owners,
)
from router.fleet.engines.sglang import SGLANG
from router.fleet.engines.trtllm import TRTLLM
from router.fleet.engines.vllm import VLLM
from router.fleet.restarts import restarted

DATA = Path(__file__).parent / "data"
SGLANG_METRICS = (DATA / "sglang_0_5_23_metrics.txt").read_bytes()
TRTLLM_METRICS = (DATA / "trtllm_metrics.txt").read_bytes()
VLLM_METRICS = (DATA / "vllm_0_32_metrics.txt").read_bytes()
ITERATIONS = json.dumps(
    [
        {"iter": 1, "numActiveRequests": 9, "numQueuedRequests": 9},
        {
            "iter": 2,
            "numActiveRequests": 3,
            "numQueuedRequests": 2,
            "kvCacheStats": {
                "maxNumBlocks": 100,
                "usedNumBlocks": 25,
                "freeNumBlocks": 75,
                "tokensPerBlock": 32,
                "reusedBlocks": 6,
                "missedBlocks": 2,
                "cacheHitRate": 0.75,
            },
        },
    ]
).encode()


def owned(owner: str, *names: str) -> bytes:
    data = [{"id": name, "object": "model", "owned_by": owner} for name in names]
    return json.dumps({"object": "list", "data": data}).encode()


def test_an_engine_is_known_by_the_owner_of_its_models_or_by_its_metrics() -> None:
    for kind in ENGINES:
        assert kind_by_owners(["somebody", kind.owner]) is kind
    assert kind_by_owners([None, 7, ["vllm"], "library"]) is None
    assert kind_by_metrics(VLLM_METRICS) is VLLM
    assert kind_by_metrics(SGLANG_METRICS) is SGLANG
    assert kind_by_metrics(TRTLLM_METRICS) is TRTLLM
    assert kind_by_metrics(b'go_goroutines{of="vllm:x"} 5\n# about sglang:x\n') is None


def test_sglang_tells_load_size_and_reuse() -> None:
    told = SGLANG.parse_metrics(SGLANG_METRICS)
    assert (told.running, told.waiting) == (7, 3)  # a rank's two schedulers have the same ones
    assert told.kv_usage == pytest.approx(0.375)
    assert (told.kv_tokens, told.block_tokens, told.offload_tokens) == (2 * 262_144, 64, 1_048_576)
    assert told.hit_rate == pytest.approx(0.75)
    assert told.uncached_each == pytest.approx(125)
    assert told.started is None
    first, second = told.ranks
    assert (first.running, first.waiting, first.kv_tokens) == (5, 3, 262_144)
    assert (second.running, second.waiting, second.block_tokens) == (2, 0, 64)


def test_sglang_leaves_out_counters_that_are_zero() -> None:
    text = b"\n".join(line for line in SGLANG_METRICS.splitlines() if b":cached_tokens" not in line)
    assert SGLANG.parse_metrics(text).hit_rate == 0.0
    idle = b"sglang:num_running_reqs 0.0\n"
    told = SGLANG.parse_metrics(idle)
    assert told.told_anything
    assert (told.hit_rate, told.hits, told.waiting, told.ranks) == (None, 0.0, None, ())


@pytest.mark.parametrize(
    ("kind", "text", "idle"),
    [
        (SGLANG, SGLANG_METRICS, b"sglang:num_running_reqs 0.0\n"),
        (TRTLLM, TRTLLM_METRICS, b"trtllm_num_requests_running 0.0\n"),
    ],
    ids=["sglang", "trtllm"],
)
def test_an_engine_without_a_start_time_shows_a_restart_by_its_counters(
    kind: EngineKind, text: bytes, idle: bytes
) -> None:
    before, after = kind.parse_metrics(text), kind.parse_metrics(idle)
    assert restarted(before, after, was_refused=False) == "its counters began anew"
    assert not restarted(after, before, was_refused=False)


def test_trtllm_tells_the_same_in_both_forms() -> None:
    told = TRTLLM.parse_metrics(TRTLLM_METRICS)
    assert (told.running, told.waiting, told.kv_usage) == (4, 1, 0.25)
    assert (told.kv_tokens, told.block_tokens) == (32_000, 32)
    assert told.hit_rate == pytest.approx(0.6)
    assert told.uncached_each == pytest.approx(100)
    text = b"\n".join(line for line in TRTLLM_METRICS.splitlines() if b"trtllm_prompt" not in line)
    assert TRTLLM.parse_metrics(text).hit_rate == pytest.approx(0.75)  # of blocks
    told = TRTLLM.parse_metrics(ITERATIONS)
    assert (told.running, told.waiting, told.kv_usage) == (3, 2, 0.25)
    assert (told.kv_tokens, told.hit_rate) == (3200, 0.75)
    told = TRTLLM.parse_metrics(b" []")
    assert (told.running, told.waiting, told.told_anything) == (0, 0, True)


@pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "text",
    [b"", b"[", b"[7]", b"{}", b'[{"numActiveRequests": "x"}]', b"\xff\xfe", b"trtllm_x{ 1\n"]
    + [b"%bnum_running_reqs{ NaN" % prefix for prefix in (b"sglang:", b"vllm:")],
)
def test_text_that_makes_no_sense_tells_nothing(kind: EngineKind, text: bytes) -> None:
    assert not kind.parse_metrics(text).told_anything


async def test_the_fleet_finds_each_engine_and_reads_it_in_its_own_way(
    engine: StartEngine, fleet: StartFleet
) -> None:
    vllm = await engine(models=owned("vllm", "m"), metrics=metrics_text(running=1))
    sglang = await engine(models=owned("sglang", "m"), metrics=SGLANG_METRICS)
    trtllm = await engine(
        models=owned("tensorrt_llm", "m"), more={"/prometheus/metrics": TRTLLM_METRICS}
    )
    bare = await engine(models=owned("tensorrt_llm", "m"), metrics=ITERATIONS)
    found = await fleet(vllm, sglang, trtllm, bare)
    kinds = {each.url: each.kind for each in found.endpoints()}
    assert kinds == {vllm.url: VLLM, sglang.url: SGLANG, trtllm.url: TRTLLM, bare.url: TRTLLM}
    sizes = {each.url: each.kv_tokens for each in found.endpoints()}
    assert sizes[sglang.url] == 262_144
    assert sizes[trtllm.url] == 32_000
    assert sizes[bare.url] == 3200
    ranks = found.find(sglang.url).ranks
    assert [rank.kind for rank in ranks] == [SGLANG, SGLANG]
    assert ranks[1].rank_header == b"x-data-parallel-rank: 1\r\n"
    assert "/tokenize" not in sglang.asked  # it renders no chats there


async def test_metrics_name_the_engine_where_the_models_do_not(
    engine: StartEngine, fleet: StartFleet
) -> None:
    hidden = await engine(models=models_json("m"), metrics=SGLANG_METRICS)
    closed = await engine(models_status=403, metrics=SGLANG_METRICS)
    dumb = await engine(models=models_json("m"), metrics_status=404)
    found = await fleet(hidden, closed, dumb)
    assert found.find(hidden.url).kind is SGLANG
    assert found.find(closed.url).kind is SGLANG
    assert found.find(dumb.url).kind is UNKNOWN
    assert found.find(hidden.url).engine is not None


async def test_another_engine_on_the_same_address_is_found_at_the_next_reading(
    engine: StartEngine, fleet: StartFleet
) -> None:
    one = await engine(models=owned("vllm", "m"))
    found = await fleet(one)
    replica = found.find(one.url)
    assert replica.kind is VLLM
    one.models, one.metrics = owned("sglang", "m"), SGLANG_METRICS
    assert await found.until(lambda: replica.kind is SGLANG and len(replica.ranks) == 2, 10)


async def test_a_replica_without_metrics_is_told_its_own_flag(
    engine: StartEngine, fleet: StartFleet, caplog: pytest.LogCaptureFixture
) -> None:
    one = await engine(models=owned("sglang", "m"), metrics_status=404)
    found = await fleet(one)
    assert found.find(one.url).engine_missing == "/metrics answered 404"
    assert "--enable-metrics" in caplog.text


async def test_what_the_models_say_is_believed_before_the_metrics(
    engine: StartEngine, fleet: StartFleet
) -> None:
    one = await engine(models=owned("sglang", "m"), metrics=VLLM_METRICS)
    found = await fleet(one)
    await one.asked_again("/metrics")
    replica = found.find(one.url)
    assert replica.kind is SGLANG
    assert replica.engine_missing == "/metrics has none of SGLang's names"


async def test_paths_of_one_engine_go_to_it_where_the_fleet_has_it(
    engine: StartEngine, fleet: StartFleet
) -> None:
    vllm = await engine(models=owned("vllm", "m"))
    sglang = await engine(models=owned("sglang", "m"))
    dumb = await engine(models=models_json("m"), metrics_status=404)
    found = await fleet(vllm, sglang, dumb)
    every = found.usable
    bits = {url: found.find(url).bit for url in (vllm.url, sglang.url, dumb.url)}
    assert found.of_engine("sglang", every) == bits[sglang.url] | bits[dumb.url]
    assert found.of_engine("trtllm", every) == every
    assert found.of_engine("sglang", bits[vllm.url]) == 0
    found.remove(sglang.url)
    assert found.of_engine("sglang", bits[vllm.url]) == bits[vllm.url]


async def test_sglang_may_take_its_second_for_its_health(
    engine: StartEngine, fleet: StartFleet
) -> None:
    """Its /health waits for one before it looks, which is the usual time between two probes."""
    assert SGLANG.health_seconds >= 1.0
    assert VLLM.health_seconds == 0.0
    one = await engine(models=owned("sglang", "m"), metrics=SGLANG_METRICS)
    found = await fleet(one, health_interval=0.05, health_timeout=0.3)
    replica = found.find(one.url)
    one.slow["/health"] = 0.6
    await one.asked_again("/health", 3)
    assert replica.health.well
