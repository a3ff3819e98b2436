"""The metrics as text, made in pieces so that a scrape of a large fleet holds up no request.

Written by hand rather than with prometheus_client's families: a sample costs 0.4 us instead of
about 6 (bench/telemetry.py), and a large fleet has tens of thousands. The process's own metrics, a
handful, are prometheus_client's.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector

from router.prompt import memory_bytes
from router.telemetry import (
    audit_metrics,
    catalogue,
    logs,
    overflow_metrics,
    queue_metrics,
    tenant_metrics,
)
from router.telemetry.histogram import Histogram
from router.telemetry.ledger import GAPS
from router.telemetry.loop_watch import LoopWatch
from router.telemetry.metric import Metric
from router.telemetry.series import Series, escape
from router.telemetry.sources import (
    AuditSource,
    BuildInfo,
    DiagnosisSource,
    DiscoverySource,
    ExactSource,
    FleetSource,
    IndexSource,
    Legs,
    LogSource,
    OverflowSource,
    QueueSource,
    ReplicaSource,
    ShadowRow,
    ShadowSource,
    StateSource,
    TenantCounters,
    TenantSource,
    TraceSource,
)
from router.telemetry.telemetry import Telemetry

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PRIORITIES: Final = {-1: "high", 0: "normal", 1: "low"}
RENDER_SLICE_S: Final = 0.0005
"""Seconds of rendering after which the event loop gets its turn."""

_TOTALS: Final[tuple[tuple[Metric, Callable[[Series], int]], ...]] = (
    (catalogue.PROMPT_TOKENS, lambda s: s.prompt_tokens),
    (catalogue.OUTPUT_TOKENS, lambda s: s.output_tokens),
    (catalogue.LEDGER_PROMPT, lambda s: s.ledger.prompt),
    (catalogue.AVAILABLE, lambda s: s.ledger.available),
    (catalogue.CHOSEN, lambda s: s.ledger.chosen),
    (catalogue.PREDICTED, lambda s: s.ledger.predicted),
    (catalogue.DELIVERED, lambda s: s.ledger.delivered),
)
_TENANTS: Final[tuple[tuple[Metric, Callable[[TenantCounters], int]], ...]] = (
    (tenant_metrics.REQUESTS, lambda use: use.requests),
    (tenant_metrics.PROMPT, lambda use: use.prompt_tokens),
    (tenant_metrics.CACHED, lambda use: use.cached_tokens),
    (tenant_metrics.OUTPUT, lambda use: use.output_tokens),
    (tenant_metrics.ISOLATED, lambda use: use.isolated_tokens),
)
_AFTER_GAPS: Final[tuple[tuple[Metric, Callable[[Series], int]], ...]] = (
    (catalogue.SURPLUS, lambda s: s.ledger.surplus),
    (catalogue.UNREPORTED, lambda s: s.ledger.unreported),
)


_SHADOWS: Final[tuple[tuple[Metric, Callable[[ShadowRow], float | None]], ...]] = (
    (catalogue.SHADOW_REQUESTS, lambda row: row.requests),
    (catalogue.SHADOW_PROMPT, lambda row: row.prompt),
    (catalogue.SHADOW_PREDICTED, lambda row: row.predicted),
    (catalogue.SHADOW_DELIVERED, lambda row: row.delivered),
    (catalogue.SHADOW_HOTTEST, lambda row: row.hottest),
    (catalogue.SHADOW_WAIT, lambda row: row.wait),
)
_SHARED: Final[tuple[tuple[Metric, Callable[[StateSource], float]], ...]] = (
    (catalogue.STATE_LAG, lambda s: s.lag),
    (catalogue.STATE_ROUTERS, lambda s: s.routers),
    (catalogue.STATE_FACTS_SENT, lambda s: s.facts_sent),
    (catalogue.STATE_FACTS_RECEIVED, lambda s: s.facts_received),
    (catalogue.STATE_FACTS_DROPPED, lambda s: s.facts_dropped),
    (catalogue.STATE_BATCHES_SENT, lambda s: s.batches_sent),
    (catalogue.STATE_BATCHES_RECEIVED, lambda s: s.batches_received),
    (catalogue.STATE_BYTES_SENT, lambda s: s.bytes_sent),
    (catalogue.STATE_BYTES_RECEIVED, lambda s: s.bytes_received),
    (catalogue.STATE_SKIPPED, lambda s: s.skipped),
    (catalogue.STATE_ERRORS, lambda s: s.errors),
)


class Exposition:
    """Renders everything a scrape shows. Used from the event loop's thread only."""

    def __init__(
        self,
        telemetry: Telemetry,
        fleet: FleetSource,
        index: IndexSource,
        log: LogSource,
        build: BuildInfo,
        discovery: DiscoverySource | None = None,
        shared: StateSource | None = None,
        exact: ExactSource | None = None,
        tenants: TenantSource | None = None,
        loop_watch: LoopWatch | None = None,
        queue: Callable[[], QueueSource | None] = lambda: None,
        diagnoses: DiagnosisSource | None = None,
        audit: AuditSource | None = None,
        shadows: ShadowSource | None = None,
        tracer: TraceSource | None = None,
        overflow: OverflowSource | None = None,
    ) -> None:
        """queue: which there is only once the router serves."""
        self._telemetry = telemetry
        self._fleet = fleet
        self._index = index
        self._log = log
        self._build = build
        self._discovery = discovery
        self._shared = shared
        self._exact = exact
        self._tenants = tenants
        self._loop_watch = loop_watch or LoopWatch()
        self._queue = queue
        self._diagnoses = diagnoses
        self._audit = audit
        self._shadows = shadows
        self._tracer = tracer
        self._overflow = overflow
        # registry=None: nothing is registered anywhere, the collector is asked directly.
        self._process = ProcessCollector(registry=None)

    async def render(self) -> list[bytes]:
        """The text of a scrape, in parts. Takes turns with the event loop every `SLICE` seconds."""
        # Counting open files is a slow walk through /proc when there are many connections.
        process = await asyncio.to_thread(generate_latest, self._process)
        parts = []
        pieces = []
        until = time.perf_counter() + RENDER_SLICE_S
        for piece in self.pieces():
            pieces.append(piece)
            if time.perf_counter() > until:
                parts.append("".join(pieces).encode())
                pieces.clear()
                await asyncio.sleep(0)
                until = time.perf_counter() + RENDER_SLICE_S
        return [*parts, "".join(pieces).encode(), process]

    def pieces(self) -> Iterator[str]:
        """The router's own metrics, some lines at a time. Each histogram is whole in one piece."""
        telemetry = self._telemetry
        telemetry.sweep()
        yield from self._requests()
        yield _head(catalogue.ATTEMPTS)
        for (replica, reason), count in list(telemetry.attempts.items()):
            yield _line(catalogue.ATTEMPTS, f'replica="{escape(replica)}",reason="{reason}"', count)
        yield _single(catalogue.RETRIES, telemetry.retries)
        if telemetry.served_by:
            yield _head(catalogue.SERVED_BY)
            for word, count in list(telemetry.served_by.items()):
                yield _line(catalogue.SERVED_BY, f'endpoint="{word}"', count)
        yield from _legs(telemetry.legs)
        yield _head(catalogue.DECISIONS)
        for (policy, reason), count in list(telemetry.decisions.items()):
            labels = f'policy="{escape(policy)}",reason="{escape(reason)}"'
            yield _line(catalogue.DECISIONS, labels, count)
        yield from self._series()
        yield from self._gauges()

    def _requests(self) -> Iterator[str]:
        rows = self._telemetry.rows()
        yield _head(catalogue.REQUESTS)
        for row in rows:
            for code, count in list(row.codes.items()):
                yield _line(catalogue.REQUESTS, f'{row.labels},code="{code}"', count)
        yield _head(catalogue.ERRORS)
        for row in rows:
            for reason, count in list(row.errors.items()):
                yield _line(catalogue.ERRORS, f'{row.labels},reason="{reason}"', count)

    def _series(self) -> Iterator[str]:
        series = self._telemetry.series()
        yield _head(catalogue.TTFT)
        for one in series:
            yield _histogram(catalogue.TTFT, one.labels, one.ttft)
        yield _head(catalogue.TPOT)
        for one in series:
            yield _histogram(catalogue.TPOT, one.labels, one.tpot)
        yield _head(catalogue.DURATION)
        for one in series:
            yield _histogram(catalogue.DURATION, one.labels, one.duration)
        yield _head(catalogue.OVERHEAD)
        yield _histogram(catalogue.OVERHEAD, "", self._telemetry.overhead)
        yield from _totals(_TOTALS, series)
        tiers = [
            (f'replica="{escape(replica)}",medium="{escape(medium)}"', counters)
            for (replica, medium), counters in list(self._telemetry.tiers.items())
        ]
        yield _head(catalogue.TIER_TOKENS)
        for labels, counters in tiers:
            yield _line(catalogue.TIER_TOKENS, labels, counters.tokens)
        yield _head(catalogue.TIER_TOKEN_SECONDS)
        for labels, counters in tiers:
            yield _line(catalogue.TIER_TOKEN_SECONDS, labels, counters.token_seconds)
        yield _head(catalogue.GAP)
        for one in series:
            for gap in GAPS:
                count = getattr(one.ledger, gap)
                yield _line(catalogue.GAP, f'{one.labels},gap="{gap}"', count)
        yield from _totals(_AFTER_GAPS, series)

    def _gauges(self) -> Iterator[str]:
        fleet = self._fleet
        index = self._index
        named = [
            (f'replica="{escape(replica.name)}"', replica)
            for replica in fleet.replicas
            if replica is not None
        ]

        def members() -> Iterator[tuple[str, ReplicaSource]]:
            """Those that have not left since: there may be time between two pieces."""
            return (each for each in named if fleet.replicas[each[1].slot] is each[1])

        def sized() -> Iterator[tuple[str, ReplicaSource]]:
            """Those of them whose KV cache's size is known."""
            return (each for each in members() if each[1].kv_tokens_known)

        yield _head(catalogue.IN_FLIGHT)
        for labels, replica in members():
            yield _line(catalogue.IN_FLIGHT, labels, replica.load.in_flight)
        yield _head(catalogue.QUEUED)
        for labels, replica in members():
            yield _line(catalogue.QUEUED, labels, replica.load.queued_tokens)
        yield _head(catalogue.USABLE)
        for labels, replica in members():
            yield _line(catalogue.USABLE, labels, fleet.usable >> replica.slot & 1)
        yield _head(catalogue.STATE)
        for labels, replica in members():
            yield _line(catalogue.STATE, f'{labels},state="{escape(replica.state)}"', 1)
        yield _head(catalogue.BREAKER)
        for labels, replica in members():
            yield _line(catalogue.BREAKER, f'{labels},state="{escape(replica.breaker.state)}"', 1)
        discovery = self._discovery
        yield _single(catalogue.DISCOVERY, int(discovery is None or discovery.current))
        yield _single(catalogue.INDEX_BLOCKS, index.blocks)
        yield _single(catalogue.INDEX_BYTES, index.nbytes())
        yield _single(catalogue.PROMPT_MEMORY, memory_bytes())
        yield _head(catalogue.INDEX_SHARE)
        for labels, replica in sized():
            yield _line(catalogue.INDEX_SHARE, labels, index.share(replica.slot))
        yield _head(catalogue.KV_CACHE)
        for labels, replica in sized():
            yield _line(catalogue.KV_CACHE, labels, replica.kv_tokens)
        live = self._telemetry.live
        yield _single(catalogue.CONNECTIONS, live.connections)
        yield _head(catalogue.HELD)
        for model, count in live.held.items():
            yield _line(catalogue.HELD, f'model="{escape(model)}"', count)
        yield _single(catalogue.STREAMS, live.streams)
        yield _single(catalogue.BODY_BYTES, live.body_bytes)
        yield from self._waiting(members)
        yield from _diagnosed(self._diagnoses, self._audit)
        yield from _exact(self._exact, members)
        yield _single(catalogue.LOG_DROPPED, self._log.dropped)
        yield _single(catalogue.OWN_LOG_DROPPED, logs.dropped())
        watch = self._loop_watch
        yield _head(catalogue.LOOP_DELAY) + _histogram(catalogue.LOOP_DELAY, "", watch.delay)
        yield _head(catalogue.LOOP_HOLDS)
        for where, count in list(watch.holds.items()):
            yield _line(catalogue.LOOP_HOLDS, f'where="{escape(where)}"', count)
        yield from _shared(self._shared)
        yield from _overflow(self._overflow)
        yield from _tenants(self._tenants)
        yield from _shadows(self._shadows)
        tracer = self._tracer
        yield _single(catalogue.TRACES_SENT, tracer.handed_over if tracer is not None else 0)
        yield _single(catalogue.TRACES_DROPPED, tracer.dropped if tracer is not None else 0)
        build = ",".join(f'{name}="{escape(self._build[name])}"' for name in catalogue.BUILD.labels)
        yield _head(catalogue.BUILD) + _line(catalogue.BUILD, build, 1)

    def _waiting(self, members: Callable[[], Iterable[tuple[str, ReplicaSource]]]) -> Iterator[str]:
        queue = self._queue()
        if queue is None:
            yield from map(_head, queue_metrics.OF_QUEUE)
            return
        yield _head(queue_metrics.WAITING)
        waiting = queue.waiting()
        for priority, word in PRIORITIES.items():
            for where in ("door", "lane"):
                labels = f'priority="{word}",where="{where}"'
                yield _line(queue_metrics.WAITING, labels, waiting.get((priority, where), 0))
        yield _single(queue_metrics.WORK, queue.work_seconds)
        yield _head(queue_metrics.WAIT)
        for priority, word in PRIORITIES.items():
            histogram = self._telemetry.queue_waits[priority]
            yield _histogram(queue_metrics.WAIT, f'priority="{word}"', histogram)
        yield _head(queue_metrics.WAIT_ERROR)
        for where, histogram in self._telemetry.wait_errors.items():
            yield _histogram(queue_metrics.WAIT_ERROR, f'where="{where}"', histogram)
        yield _head(queue_metrics.OUTCOMES)
        for outcome, count in list(queue.outcomes.items()):
            yield _line(queue_metrics.OUTCOMES, f'outcome="{outcome}"', count)
        yield _single(queue_metrics.STRETCH, queue.stretch)
        active, idle = queue.sessions
        yield _head(queue_metrics.SESSIONS)
        yield _line(queue_metrics.SESSIONS, 'state="active"', active)
        yield _line(queue_metrics.SESSIONS, 'state="idle"', idle)
        yield _head(queue_metrics.KV_WANTED)
        for labels, replica in members():
            wanted = queue.kv_wanted(replica.slot)
            if wanted is not None:
                yield _line(queue_metrics.KV_WANTED, labels, wanted)
        yield _head(queue_metrics.REUSE_LOST)
        for reason, tokens in self._telemetry.reuse_lost.items():
            yield _line(queue_metrics.REUSE_LOST, f'reason="{reason}"', tokens)


def _diagnosed(diagnoses: DiagnosisSource | None, audit: AuditSource | None) -> Iterator[str]:
    none: dict[str, int] = {}
    rows: list[tuple[Metric, str, Mapping[str, int]]] = [
        (audit_metrics.DIAGNOSED, "reason", diagnoses.requests if diagnoses else none),
        (audit_metrics.MISSED, "reason", diagnoses.tokens if diagnoses else none),
        (audit_metrics.STEP_PROMPT, "step", _by_step(audit.step_prompt) if audit else none),
        (audit_metrics.STEP_CACHED, "step", _by_step(audit.step_cached) if audit else none),
        (audit_metrics.TOOL_BYTES, "seen", audit.tool_bytes if audit else none),
        (audit_metrics.RESUMED, "cache", audit.resumed if audit else none),
        (audit_metrics.VOLATILE, "looks_like", audit.volatile if audit else none),
    ]
    for metric, label, counts in rows:
        yield _head(metric)
        for word, count in list(counts.items()):
            yield _line(metric, f'{label}="{word}"', count)
    yield _single(audit_metrics.UNDIAGNOSED, diagnoses.left_out if diagnoses else 0)


def _by_step(counts: list[int]) -> dict[str, int]:
    return {str(step): count for step, count in enumerate(counts, 1)}


def _exact(
    exact: ExactSource | None, members: Callable[[], Iterable[tuple[str, ReplicaSource]]]
) -> Iterator[str]:
    yield _head(catalogue.EXACT_CONFIDENCE)
    if exact is not None:
        for labels, replica in members():
            yield _line(catalogue.EXACT_CONFIDENCE, labels, exact.confidence(replica.slot))
    yield _head(catalogue.EXACT_PROMPTS)
    for result, count in list(exact.prompts.items()) if exact is not None else ():
        yield _line(catalogue.EXACT_PROMPTS, f'result="{result}"', count)
    yield _head(catalogue.EXACT_EVENTS)
    if exact is not None:
        for labels, replica in members():
            for fault, count in list(exact.event_counts(replica.slot).items()):
                yield _line(catalogue.EXACT_EVENTS, f'{labels},fault="{fault}"', count)
    yield _single(catalogue.EXACT_BYTES, exact.memory_bytes if exact is not None else 0)
    yield _single(catalogue.EXACT_TOKENS, exact.memory_tokens if exact is not None else 0)


def _shared(shared: StateSource | None) -> Iterator[str]:
    for metric, value in _SHARED:
        yield _single(metric, value(shared) if shared is not None else 0)
    up = catalogue.STATE_UP
    yield _single(up, int(shared is None or shared.up))


def _overflow(overflow: OverflowSource | None) -> Iterator[str]:
    targets = [(f'target="{each.name}"', each) for each in (overflow.targets if overflow else ())]
    yield _head(overflow_metrics.REQUESTS)
    for labels, target in targets:
        for why, count in list(target.requests.items()):
            yield _line(overflow_metrics.REQUESTS, f'{labels},why="{why}"', count)
    yield _head(overflow_metrics.FAILED)
    for labels, target in targets:
        yield _line(overflow_metrics.FAILED, labels, target.failed)
    yield _head(overflow_metrics.MONEY)
    for labels, target in targets:
        yield _line(overflow_metrics.MONEY, labels, target.money)
    wall = time.time()
    yield _head(overflow_metrics.SPENT)
    for labels, target in targets:
        yield _line(overflow_metrics.SPENT, labels, target.spent(wall))
    yield _head(overflow_metrics.BUDGET)
    for labels, target in targets:
        yield _line(overflow_metrics.BUDGET, labels, target.daily_budget)
    yield _head(overflow_metrics.USABLE)
    for labels, target in targets:
        yield _line(overflow_metrics.USABLE, labels, int(target.usable))


def _tenants(tenants: TenantSource | None) -> Iterator[str]:
    rows = [
        (f'tenant="{escape(name)}"', use)
        for name, use in (tenants.rows() if tenants is not None else ())
    ]
    for metric, value in _TENANTS:
        yield _head(metric)
        for labels, use in rows:
            yield _line(metric, labels, value(use))
    yield _head(tenant_metrics.REFUSED)
    for labels, use in rows:
        for limit, count in list(use.refused.items()):
            yield _line(tenant_metrics.REFUSED, f'{labels},limit="{limit}"', count)
    for metric, label, counts in (
        (catalogue.AUTH_FAILURES, "reason", tenants.auth_failures if tenants else {}),
        (catalogue.LIMITS_SHADOWED, "limit", tenants.shadowed if tenants else {}),
        (catalogue.LIMITS_DECIDED, "by", tenants.decided if tenants else {}),
    ):
        yield _head(metric)
        for word, count in list(counts.items()):
            yield _line(metric, f'{label}="{word}"', count)
    yield _single(catalogue.LIMITS_SHARED, int(tenants is not None and tenants.shared))


def _shadows(shadows: ShadowSource | None) -> Iterator[str]:
    if shadows is None:
        yield from map(_head, catalogue.OF_SHADOWS)
        return
    rows = shadows.rows()
    for metric, value in _SHADOWS:
        yield _head(metric)
        for row in rows:
            found = value(row)
            if found is not None:
                yield _line(metric, f'policy="{escape(row.policy)}"', found)
    yield _single(catalogue.SHADOW_LEFT_OUT, shadows.left_out)
    yield _single(catalogue.SHADOW_TRUSTED, int(shadows.trusted))
    yield _single(catalogue.SAVED_TOKENS, shadows.saved_tokens)
    yield _single(catalogue.SAVED_SECONDS, shadows.saved_seconds)


def _head(metric: Metric) -> str:
    return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"


def _line(metric: Metric, labels: str, value: float) -> str:
    return f"{metric.name}{{{labels}}} {value}\n"


def _legs(legs: Legs | None) -> Iterator[str]:
    if legs is None:
        yield from map(_head, catalogue.OF_PREFILL)
        return
    yield _head(catalogue.PREFILL_LEGS)
    for outcome, count in legs.counts.items():
        yield _line(catalogue.PREFILL_LEGS, f'outcome="{outcome}"', count)
    yield _single(catalogue.PREFILL_SECONDS, legs.prefill_seconds)
    yield _single(catalogue.PREFILL_TOKENS, legs.moved_tokens)
    yield _single(catalogue.TRANSFER_SECONDS, legs.seconds_per_token)


def _single(metric: Metric, value: float) -> str:
    return f"{_head(metric)}{metric.name} {value}\n"


def _totals(
    metrics: tuple[tuple[Metric, Callable[[Series], int]], ...], series: list[Series]
) -> Iterator[str]:
    for metric, value in metrics:
        yield _head(metric)
        for one in series:
            yield _line(metric, one.labels, value(one))


def _histogram(metric: Metric, labels: str, histogram: Histogram) -> str:
    start = f"{metric.name}_bucket{{{labels},le=" if labels else f"{metric.name}_bucket{{le="
    counts = histogram.cumulative()
    lines = [
        f'{start}"{bound}"}} {count}\n'
        for bound, count in zip(histogram.bounds, counts, strict=False)
    ]
    inside = f"{{{labels}}}" if labels else ""
    lines.append(
        f'{start}"+Inf"}} {counts[-1]}\n'
        f"{metric.name}_sum{inside} {histogram.sum}\n"
        f"{metric.name}_count{inside} {counts[-1]}\n"
    )
    return "".join(lines)
