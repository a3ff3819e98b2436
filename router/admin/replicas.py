"""What the admin port tells of each replica."""

from __future__ import annotations

import time

import msgspec

from router.admin.parts import AdminParts
from router.fleet.replica import Replica
from router.telemetry.ledger import Ledger


class Faults(msgspec.Struct):
    """Requests that failed on it, by reason."""

    connect: int
    timeout: int
    died: int
    status: int


class ReplicaReport(msgspec.Struct):
    """A replica in GET /replicas. Null: not known."""

    name: str
    slot: int
    url: str
    state: str
    """starting, ready, unhealthy or draining."""
    usable: bool
    """Requests may be sent to it."""
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
    any_model: bool
    """It does not tell its models and is taken to serve every one."""
    kv_cache_tokens: int
    kv_cache_known: bool
    """Not a guess."""
    index_share: float
    """How full its KV cache is, as the index models it, from 0 to 1."""
    prompt_tokens: int
    """Of the requests whose engine reported cached tokens; what hit_rate is a share of."""
    hit_rate: float | None
    """Since the router started: prompt tokens delivered from cache."""
    hit_rate_recent: float | None
    """The same over the last five minutes."""
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
    exact_next: list[int] | None
    """For each rank, the number of the event batch that comes next: all before are applied."""


def reports(parts: AdminParts) -> list[ReplicaReport]:
    """All replicas, by slot."""
    ledgers = parts.telemetry.ledgers()
    return [
        _report(parts, replica, ledgers.get(replica.name))
        for replica in parts.fleet.replicas
        if replica is not None
    ]


def _report(parts: AdminParts, replica: Replica, ledger: Ledger | None) -> ReplicaReport:
    load = replica.load
    engine = replica.engine
    faults = replica.faults
    exact = parts.exact
    why = exact.why_not(replica.slot) if exact is not None else ""
    return ReplicaReport(
        name=replica.name,
        slot=replica.slot,
        url=replica.url,
        state=str(replica.state),
        usable=bool(parts.fleet.usable >> replica.slot & 1),
        last_error=replica.health.reason,
        breaker=str(replica.breaker.state),
        breaker_opens=replica.breaker.opens,
        weight=load.weight,
        in_flight=load.in_flight,
        queued_tokens=int(load.queued_tokens),
        prefill_rate=int(load.prefill_rate),
        models=list(replica.models),
        any_model=replica.any_model,
        kv_cache_tokens=replica.kv_tokens,
        kv_cache_known=replica.kv_tokens_known,
        index_share=parts.index.share(replica.slot),
        prompt_tokens=ledger.prompt if ledger is not None else 0,
        hit_rate=ledger.hit_rate if ledger is not None else None,
        hit_rate_recent=parts.recent.hit_rate(replica.name, ledger),
        engine_hit_rate=engine.hit_rate if engine is not None else None,
        engine_running=engine.running if engine is not None else None,
        engine_waiting=engine.waiting if engine is not None else None,
        engine_kv_usage=engine.kv_usage if engine is not None else None,
        metrics_age=time.monotonic() - replica.engine_at if engine is not None else None,
        metrics_missing=replica.engine_missing,
        faults=Faults(faults.connect, faults.timeout, faults.died, faults.status),
        restarts=replica.restarts,
        exact=not why if exact is not None else None,
        exact_missing=why,
        exact_confidence=exact.confidence(replica.slot) if exact is not None else None,
        exact_next=exact.next_events(replica.slot) if exact is not None else None,
    )
