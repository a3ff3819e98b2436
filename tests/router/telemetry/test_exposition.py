"""The text of /metrics, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.audit import Auditor
from router.diagnosis import Diagnoser
from router.diagnosis.verdict import REASONS
from router.disaggregation.disaggregation import Disaggregation
from router.disaggregation.nixl import Nixl
from router.index.tree import ByteIndex
from router.prompt.spans import SPANS
from router.shadow.shadows import ShadowRow
from router.telemetry import catalogue, exposition, metrics_page
from router.telemetry.exposition import Exposition
from router.telemetry.loop_watch import LoopWatch
from router.telemetry.queue_metrics import CACHE_LOST
from router.telemetry.record import Finished, Outcome
from router.telemetry.telemetry import Telemetry
from router.tenants.use import Use
from router.types import Load, TierPart


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


class ShadowBook:
    left_out = 3
    trusted = True
    saved_tokens = 900
    saved_seconds = 0.5

    def rows(self) -> list[ShadowRow]:
        return [ShadowRow("round_robin", 20, 1000, 300, 500, 2.5, 1.25)]


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


class TenantBook:
    auth_failures: ClassVar = {"missing": 2}
    shadowed: ClassVar = {"requests_per_minute": 3}
    decided: ClassVar = {"lease": 4}
    shared = True

    def rows(self) -> list[tuple[str, Use]]:
        return [("acme", Use(requests=1, refused={"model": 5}))]


BUILD = {"version": "0.1.0", "python": "3.11.4", "policy": "cache_aware"}


class Waiting:
    outcomes: ClassVar = {"direct": 5, "held": 2}
    stretch = 1.5
    sessions = (3, 4)
    work_seconds = 12.5

    def waiting(self) -> dict[tuple[int, str], int]:
        return {(-1, "door"): 7, (1, "lane"): 8}

    def kv_wanted(self, slot: int) -> float | None:
        return 0.75 if slot == 1 else None


class OneTarget:
    name = "cloud"
    requests: ClassVar = {"late": 2}
    failed = 1
    money = 0.5
    usable = True
    condition = "closed"
    daily_budget = 5.0

    def spent(self, wall: float) -> float:
        return 1.5


class Targets:
    targets: ClassVar = [OneTarget()]


def make(telemetry: Telemetry, *names: str) -> Exposition:
    fleet = Fleet(*(names or ("a:1", "b:1")))
    watch = LoopWatch()
    watch.holds["router.somewhere.slow"] = 2
    return Exposition(
        telemetry,
        fleet,
        Index(),
        Log(),
        BUILD,
        exact=Exact(),
        tenants=TenantBook(),
        shadows=ShadowBook(),
        loop_watch=watch,
        queue=Waiting,
        diagnoses=Diagnoser(1 << 20, list),
        audit=Auditor(list, dict),
        overflow=Targets(),
    )


def busy() -> Telemetry:
    telemetry = Telemetry()
    telemetry.legs = Disaggregation(ByteIndex(SPANS), Nixl())
    telemetry.observe(
        Finished(
            "r", api="chat", model="llama", slot=1, replica="a:1", status=200, retries=1,
            overhead=6e-5, ttft=0.3, duration=4.2, prompt_tokens=3000, output_tokens=200,
            delivered=2000, available=2900, chosen=2500, predicted=2496, policy="p", reason="cost",
            tiers=[TierPart("CPU", 1000, 0.02, "learned")],
        )
    )  # fmt: skip
    telemetry.observe(Finished("s", status=503, outcome=Outcome.NO_REPLICA))
    telemetry.attempt_failed("a:1", Outcome.CONNECT)
    telemetry.live.connections = 11
    telemetry.live.held = {"llama": 2}
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
    assert path.read_text() == metrics_page.document(), (
        "run: python -m router.telemetry.metrics_page > docs/reference/metrics.md"
    )


async def test_values_come_out_as_counted() -> None:
    samples, _ = await scrape(make(busy()))
    llama = {"replica": "a:1", "model": "llama"}
    cpu = {"replica": "a:1", "medium": "CPU"}
    assert value(samples, "warmroute_tier_predicted_tokens_total", **cpu) == 1000
    assert value(samples, "warmroute_tier_token_seconds", **cpu) == pytest.approx(20e-6)
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


async def test_the_queue_is_shown() -> None:
    telemetry = busy()
    telemetry.observe(Finished("r", outcome="overloaded", queued=3.0, priority=1))
    samples, _ = await scrape(make(telemetry, "a", "b"))
    assert value(samples, "warmroute_queue_waiting", priority="high", where="door") == 7
    assert value(samples, "warmroute_queue_waiting", priority="low", where="lane") == 8
    assert value(samples, "warmroute_queue_waiting", priority="normal", where="lane") == 0
    assert value(samples, "warmroute_queue_work_seconds") == 12.5
    assert value(samples, "warmroute_queue_wait_seconds_count", priority="low") == 1
    assert value(samples, "warmroute_queue_wait_seconds_sum", priority="low") == 3.0
    assert value(samples, "warmroute_queue_outcomes_total", outcome="held") == 2
    assert value(samples, "warmroute_queue_stretch_ratio") == 1.5
    assert value(samples, "warmroute_sessions", state="idle") == 4
    assert value(samples, "warmroute_session_kv_wanted_ratio", replica="a") == 0.75
    absent = ("warmroute_session_kv_wanted_ratio", frozenset({("replica", "b")}))
    assert absent not in samples


async def test_waits_are_compared_with_what_was_expected() -> None:
    telemetry = busy()
    waits = [  # where, seconds, expected, slot
        ("door", 10.0, 5.0, 0),
        ("door lane", 6.0, 5.0, 0),
        ("lane", 1.0, 2.0, 0),
        ("lane", 1.0, 0.1, 0),  # too little to compare
        ("lane", 60.0, 2.0, -1),  # never sent
    ]
    for where, queued, expected, slot in waits:
        telemetry.observe(
            Finished(
                "r",
                slot=slot,
                replica="a:1" if slot >= 0 else "",
                queued=queued,
                waited_at=where,
                queue_expected=expected,
            )
        )
    samples, _ = await scrape(make(telemetry, "a:1"))
    name = "warmroute_queue_wait_to_expected_ratio"
    assert value(samples, f"{name}_count", where="door") == 2
    assert value(samples, f"{name}_sum", where="door") == pytest.approx(3.2)
    assert value(samples, f"{name}_bucket", where="door", le="1.25") == 1
    assert value(samples, f"{name}_count", where="lane") == 1
    assert value(samples, f"{name}_bucket", where="lane", le="0.5") == 1


async def test_reuse_is_lost_by_sessions_whose_cache_was_worth_keeping() -> None:
    telemetry = busy()
    for in_time, queued, lost in (
        (True, -1.0, {"evicted": 100, "messages_changed": 7}),
        (True, 2.0, {"evicted": 30, "sent_elsewhere": 20}),
        (True, -1.0, {"replica_lost": 5}),
        (False, -1.0, {"evicted": 1000}),
    ):
        telemetry.observe(
            Finished(
                "r",
                slot=0,
                replica="a:1",
                queued=queued,
                back_in_time=in_time,
                lost=lost,
                missed_tokens=sum(lost.values()),
            )
        )
    samples, _ = await scrape(make(telemetry, "a:1"))
    name = "warmroute_session_reuse_lost_tokens_total"
    found = {reason: value(samples, name, reason=reason) for reason in telemetry.reuse_lost}
    assert found == {"evicted": 100, "waited": 30, "moved": 20, "replica_lost": 5}
    assert set(CACHE_LOST) <= set(REASONS)


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
