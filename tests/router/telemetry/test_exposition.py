"""The text of /metrics, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.telemetry import catalogue, exposition
from router.telemetry.exposition import Exposition
from router.telemetry.record import Finished, Outcome
from router.telemetry.telemetry import Telemetry
from router.types import Load


class Breaker:
    state = "closed"


class Replica:
    def __init__(self, slot: int, name: str) -> None:
        self.slot = slot
        self.name = name
        self.state = "ready"
        self.load = Load(queued_tokens=12.5, in_flight=3)
        self.breaker = Breaker()
        self.kv_tokens = 2000
        self.kv_tokens_known = True


class Fleet:
    def __init__(self, *names: str) -> None:
        self.replicas: list[Replica | None] = [None]
        self.replicas += [Replica(slot, name) for slot, name in enumerate(names, 1)]
        self.usable = 0b10


class Index:
    blocks = 7

    def nbytes(self) -> int:
        return 700

    def share(self, slot: int) -> float:
        return slot / 8


class Log:
    dropped = 4


class Exact:
    def __init__(self) -> None:
        self.prompts = {"exact": 5, "media": 2}
        self.memory_bytes = 600
        self.memory_tokens = 100

    def confidence(self, slot: int) -> float:
        return slot / 4

    def why_not(self, slot: int) -> str:
        return ""

    def event_counts(self, slot: int) -> dict[str, int]:
        return {"gap": slot, "restart": 0}

    def next_event(self, slot: int) -> int | None:
        return slot


BUILD = {"version": "0.1.0", "python": "3.11.4", "policy": "cache_aware"}


def make(telemetry: Telemetry, *names: str) -> Exposition:
    fleet = Fleet(*(names or ("a:1", "b:1")))
    return Exposition(telemetry, fleet, Index(), Log(), BUILD, exact=Exact())


def busy() -> Telemetry:
    telemetry = Telemetry()
    telemetry.observe(
        Finished(
            "r", api="chat", model="llama", slot=1, replica="a:1", status=200, retries=1,
            overhead=6e-5, ttft=0.3, duration=4.2, prompt_tokens=3000, output_tokens=200,
            delivered=2000, available=2900, chosen=2500, predicted=2496, policy="p", reason="cost",
        )
    )  # fmt: skip
    telemetry.observe(Finished("s", status=503, outcome=Outcome.NO_REPLICA))
    telemetry.attempt_failed("a:1", Outcome.CONNECT)
    telemetry.live.connections = 11
    return telemetry


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(shown: Exposition) -> tuple[Samples, dict[str, str]]:
    """(samples, family -> type)"""
    samples: Samples = {}
    kinds: dict[str, str] = {}
    for family in text_string_to_metric_families(b"".join(await shown.render()).decode()):
        name = family.name + "_total" if family.type == "counter" else family.name
        assert name not in kinds, f"the lines of {name} are not together"
        kinds[name] = family.type
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples, kinds


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_the_catalogue_and_the_text_name_the_same_metrics() -> None:
    samples, kinds = await scrape(make(busy()))
    listed = {metric.name: metric.kind for metric in (*catalogue.OWN, *catalogue.PROCESS)}
    assert kinds == listed
    labels_of = {metric.name: set(metric.labels) for metric in (*catalogue.OWN, *catalogue.PROCESS)}
    seen = set()
    for name, labels in samples:
        stem = name
        if name not in labels_of:
            stem = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert {label for label, _ in labels} - {"le"} == labels_of[stem], name
        seen.add(stem)
    assert seen == set(listed), "a family without a sample here would go unchecked"


def test_the_documentation_is_up_to_date() -> None:
    path = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
    assert path.read_text() == catalogue.document(), (
        "run: python -m router.telemetry.catalogue > docs/reference/metrics.md"
    )


async def test_values_come_out_as_counted() -> None:
    samples, _ = await scrape(make(busy()))
    llama = {"replica": "a:1", "model": "llama"}
    assert value(samples, "warmroute_requests_total", **llama, api="chat", code="200") == 1
    nowhere = {"replica": "none", "model": "none", "api": "other"}
    assert value(samples, "warmroute_requests_total", **nowhere, code="503") == 1
    assert value(samples, "warmroute_request_errors_total", **nowhere, reason="no_replica") == 1
    assert value(samples, "warmroute_attempts_failed_total", replica="a:1", reason="connect") == 1
    assert value(samples, "warmroute_retries_total") == 1
    assert value(samples, "warmroute_decisions_total", policy="p", reason="cost") == 1
    assert value(samples, "warmroute_reuse_prompt_tokens_total", **llama) == 3000
    assert value(samples, "warmroute_reuse_delivered_tokens_total", **llama) == 2000
    gaps = {"no_holder": 100, "load_shed": 400, "rounding": 4, "stale_index": 496, "eviction": 0}
    for gap, tokens in gaps.items():
        assert value(samples, "warmroute_reuse_gap_tokens_total", **llama, gap=gap) == tokens
    assert value(samples, "warmroute_in_flight", replica="a:1") == 3
    assert value(samples, "warmroute_queued_tokens", replica="b:1") == 12.5
    assert value(samples, "warmroute_replica_usable", replica="a:1") == 1
    assert value(samples, "warmroute_replica_usable", replica="b:1") == 0
    assert value(samples, "warmroute_replica_state", replica="a:1", state="ready") == 1
    assert value(samples, "warmroute_breaker_state", replica="a:1", state="closed") == 1
    assert value(samples, "warmroute_index_share", replica="b:1") == 0.25
    assert value(samples, "warmroute_kv_cache_tokens", replica="b:1") == 2000
    assert value(samples, "warmroute_index_blocks") == 7
    assert value(samples, "warmroute_index_bytes") == 700
    assert value(samples, "warmroute_client_connections") == 11
    assert value(samples, "warmroute_access_log_dropped_total") == 4
    assert value(samples, "warmroute_build_info", **BUILD) == 1
    assert value(samples, "process_resident_memory_bytes") > 1e6


async def test_a_cache_of_unknown_size_is_no_number() -> None:
    """Neither the size that is assumed nor a share of it."""
    exposition = make(Telemetry(), "a:1", "b:1")
    for replica in exposition._fleet.replicas:
        if isinstance(replica, Replica):
            replica.kv_tokens_known = replica.name == "b:1"
    samples, _ = await scrape(exposition)
    for name in ("warmroute_kv_cache_tokens", "warmroute_index_share"):
        told = {dict(labels)["replica"] for each, labels in samples if each == name}
        assert told == {"b:1"}


async def test_histograms_are_cumulative_and_end_at_their_count() -> None:
    samples, _ = await scrape(make(busy()))
    llama = {"replica": "a:1", "model": "llama"}
    assert value(samples, "warmroute_ttft_seconds_bucket", **llama, le="0.25") == 0
    assert value(samples, "warmroute_ttft_seconds_bucket", **llama, le="0.4") == 1
    assert value(samples, "warmroute_ttft_seconds_bucket", **llama, le="+Inf") == 1
    assert value(samples, "warmroute_ttft_seconds_count", **llama) == 1
    assert value(samples, "warmroute_ttft_seconds_sum", **llama) == 0.3
    assert value(samples, "warmroute_overhead_seconds_bucket", le="5e-05") == 0
    assert value(samples, "warmroute_overhead_seconds_bucket", le="7.5e-05") == 1
    assert value(samples, "warmroute_overhead_seconds_count") == 1


async def test_odd_names_survive() -> None:
    odd = 'my "model"\\v1\nnew line é'
    telemetry = Telemetry()
    telemetry.observe(Finished("r", model=odd, slot=1, replica=odd, status=200, prompt_tokens=5))
    samples, _ = await scrape(make(telemetry, odd))
    assert value(samples, "warmroute_prompt_tokens_total", replica=odd, model=odd) == 5
    assert value(samples, "warmroute_in_flight", replica=odd) == 3


async def test_an_idle_router_can_be_scraped() -> None:
    samples, kinds = await scrape(Exposition(Telemetry(), Fleet(), Index(), Log(), BUILD))
    assert set(kinds) == {m.name for m in (*catalogue.OWN, *catalogue.PROCESS)}
    assert value(samples, "warmroute_retries_total") == 0


async def test_rendering_takes_turns_with_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = busy()
    shown = make(telemetry)
    monkeypatch.setattr(exposition, "RENDER_SLICE_S", 0.0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            # What changes meanwhile must not break the rendering.
            done = Finished("r", model=f"m{turns}", slot=1, replica="a:1", status=200, policy="p")
            done.reason = str(turns)
            telemetry.observe(done)
            await asyncio.sleep(0)

    seen = []
    pieces = shown.pieces

    def watched() -> Iterator[str]:
        for piece in pieces():
            seen.append(turns)
            yield piece

    monkeypatch.setattr(shown, "pieces", watched)
    task = asyncio.create_task(other())
    await shown.render()
    task.cancel()
    assert seen[-1] - seen[0] >= len(seen) - 1 > 30


def test_a_large_fleet_comes_in_small_pieces() -> None:
    telemetry = busy()
    names = [f"replica-{number}:8000" for number in range(1000)]
    for name in names:
        telemetry.observe(Finished("r", model="m", slot=1, replica=name, status=200, policy="p"))
    assert max(map(len, make(telemetry, *names).pieces())) < 8192


async def test_a_scrape_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "RENDER_SLICE_S", 0.0)
    assert len(await make(busy()).render()) > 30


async def test_a_replica_that_leaves_while_rendered_is_left_out() -> None:
    shown = make(busy(), "a:1", "b:1")
    fleet = shown._fleet
    pieces = iter(shown.pieces())
    seen = ""
    while catalogue.QUEUED.name not in seen:
        seen = next(pieces)
    fleet.replicas[2] = None  # type: ignore[index]
    rest = "".join(pieces)
    assert 'replica="a:1"' in rest
    for metric in (catalogue.QUEUED, catalogue.INDEX_SHARE, catalogue.EXACT_CONFIDENCE):
        assert f'{metric.name}{{replica="b:1"' not in rest


def test_exact_mode_shows_what_is_known_and_why_prompts_were_left() -> None:
    text = "".join(make(Telemetry(), "a:1").pieces())
    for line in (
        'warmroute_exact_confidence{replica="a:1"} 0.25',
        'warmroute_exact_prompts_total{result="media"} 2',
        'warmroute_exact_event_faults_total{replica="a:1",fault="gap"} 1',
        "warmroute_exact_memory_bytes 600",
    ):
        assert line in text.splitlines()
