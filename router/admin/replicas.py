"""What the admin port tells of each replica."""

from __future__ import annotations

import time

import msgspec

from router.admin.parts import AdminParts
from router.fleet.replica import Replica
from router.telemetry.ledger import Ledger
from router.telemetry.recent import NO_ANSWERS, Answers, answers
from router.types import Role


class Faults(msgspec.Struct):
    """Requests that failed on it, by reason."""

    connect: int
    timeout: int
    silent: int
    died: int
    status: int
    engine: int


class ReplicaReport(msgspec.Struct):
    """A replica in GET /replicas. Null: not known."""

    name: str
    slot: int
    url: str
    rank: int | None
    """Which of several data-parallel ranks behind its URL it is; null where there is one engine."""
    engine: str | None
    """vllm, sglang or trtllm, by its models or its metrics; null where neither tells."""
    role: Role
    """decode answers clients, prefill computes prompts for those that do, both does both."""
    state: str
    """starting, ready, unhealthy, draining, sleeping or paused."""
    usable: bool
    """It is well: it takes requests, or will as soon as it wakes or resumes (see state)."""
    last_error: str
    """Why it is not ready; empty when it is."""
    breaker: str
    breaker_opens: int
    """Times its circuit breaker has opened."""
    weight: float
    """Slow start: share of its usual load it takes, in (0, 1]."""
    in_flight: int
    queued_tokens: int
    prefill_rate: int
    """Prompt tokens a second, as set or learned."""
    models: list[str]
    max_loras: int | None
    """LoRA adapters that it runs at the same time; null where its engine does not tell."""
    adapters_loaded: list[str]
    """Those that it is believed to have in memory, the most recently used one first."""
    adapters_with_requests: list[str]
    """Those of them that have requests there, whoever sent these."""
    any_model: bool
    """It does not tell its models and is taken to serve every one."""
    kv_cache_tokens: int | None
    """Size of its KV cache in GPU memory, as set or as its engine tells; null where neither is."""
    kv_cache_known: bool
    kv_cache_assumed: int | None
    """Where the size is not known: prompts are remembered as if there were room for so many."""
    kv_offload_tokens: int
    """What a tier behind it holds."""
    index_share: float | None
    """How full its KV cache is, as the index models it, from 0 to 1; null where its size is not
    known."""
    prompt_tokens: int
    """Of the requests whose engine reported cached tokens; what hit_rate is a share of."""
    hit_rate: float | None
    """Since the router started: prompt tokens delivered from cache."""
    hit_rate_recent: float | None
    """The same over the last five minutes."""
    available_rate: float | None
    """Share of its prompt tokens that some eligible replica held: what hit_rate could have been."""
    requests: int
    """Requests sent to it last, since the router started."""
    errors: int
    """Those of them whose outcome is not ok."""
    request_rate: float
    """Requests a second over the last minute."""
    error_share: float | None
    """Share of requests of the last minute whose outcome is not ok; null without a request."""
    ttft_p50: float | None
    """Seconds to the first token over the last minute: half of the streams had it in this time."""
    ttft_p95: float | None
    engine_hit_rate: float | None
    """As the engine counts it, other clients' requests included."""
    engine_running: float | None
    engine_waiting: float | None
    engine_kv_usage: float | None
    """Share of its KV cache held by running requests."""
    metrics_age: float | None
    """Seconds since its metrics were read."""
    metrics_missing: str
    """Why there are none; empty when there are."""
    faults: Faults
    restarts: int
    exact: bool | None
    """Exact mode: whether it is routed to by what its events tell; null where that is off."""
    exact_missing: str
    """Why it is not, for one model at least; empty when it is, or when exact mode is off."""
    exact_confidence: float | None
    """How much of what its KV cache holds is known from its events, 0 to 1."""
    exact_next: int | None
    """The number of its event batch that comes next: all before are applied."""


def reports(parts: AdminParts) -> list[ReplicaReport]:
    """All replicas, by slot."""
    ledgers = parts.telemetry.ledgers()
    totals = answers(parts.telemetry)
    return [
        _report(parts, replica, ledgers.get(replica.name), totals.get(replica.name, NO_ANSWERS))
        for replica in parts.fleet.replicas
        if replica is not None
    ]


def report(parts: AdminParts, replica: Replica) -> ReplicaReport:
    """What the admin port tells of one replica."""
    total = answers(parts.telemetry).get(replica.name, NO_ANSWERS)
    return _report(parts, replica, parts.telemetry.ledgers().get(replica.name), total)


def _report(
    parts: AdminParts, replica: Replica, ledger: Ledger | None, total: Answers
) -> ReplicaReport:
    seconds, recent = parts.answers.of(replica.name, time.monotonic(), total)
    load = replica.load
    engine = replica.engine
    faults = replica.faults
    exact = parts.exact
    why = exact.why_not(replica.slot) if exact is not None else ""
    return ReplicaReport(
        name=replica.name,
        slot=replica.slot,
        url=replica.url,
        rank=replica.rank if len(replica.ranks) > 1 else None,
        engine=replica.kind.name or None,
        role=replica.role,
        state=str(replica.state),
        usable=bool(parts.fleet.usable >> replica.slot & 1)
        or (replica.state in ("sleeping", "paused") and replica.breaker.passes),
        last_error=replica.health.reason,
        breaker=str(replica.breaker.state),
        breaker_opens=replica.breaker.opens,
        weight=load.weight,
        in_flight=load.in_flight,
        queued_tokens=int(load.queued_tokens),
        prefill_rate=int(load.prefill_rate),
        models=list(replica.models),
        max_loras=engine.max_loras if engine is not None else None,
        adapters_loaded=parts.adapters.loaded(replica.slot),
        adapters_with_requests=parts.adapters.with_requests(replica.slot),
        any_model=replica.any_model,
        kv_cache_tokens=replica.kv_tokens if replica.kv_tokens_known else None,
        kv_cache_known=replica.kv_tokens_known,
        kv_cache_assumed=None if replica.kv_tokens_known else replica.kv_tokens,
        kv_offload_tokens=replica.offload_tokens,
        index_share=parts.index.share(replica.slot) if replica.kv_tokens_known else None,
        prompt_tokens=ledger.prompt if ledger is not None else 0,
        hit_rate=ledger.hit_rate if ledger is not None else None,
        hit_rate_recent=parts.recent.hit_rate(replica.name, ledger),
        available_rate=ledger.available / ledger.prompt if ledger and ledger.prompt else None,
        requests=total.requests,
        errors=total.errors,
        request_rate=recent.requests / seconds if seconds > 0 else 0.0,
        error_share=recent.errors / recent.requests if recent.requests else None,
        ttft_p50=recent.ttft_at(0.5),
        ttft_p95=recent.ttft_at(0.95),
        engine_hit_rate=engine.hit_rate if engine is not None else None,
        engine_running=engine.running if engine is not None else None,
        engine_waiting=engine.waiting if engine is not None else None,
        engine_kv_usage=engine.kv_usage if engine is not None else None,
        metrics_age=time.monotonic() - replica.engine_at if engine is not None else None,
        metrics_missing=replica.engine_missing,
        faults=Faults(
            faults.connect,
            faults.timeout,
            faults.silent,
            faults.died,
            faults.status,
            faults.engine,
        ),
        restarts=replica.restarts,
        exact=not why if exact is not None else None,
        exact_missing=why,
        exact_confidence=exact.confidence(replica.slot) if exact is not None else None,
        exact_next=exact.next_event(replica.slot) if exact is not None else None,
    )
