"""Records into an Arm, with the metrics as vLLM's benchmark (vllm/benchmarks/serve.py) defines
them.

TTFT is the first token's time, E2E the last token's, both here from when the request was due, so
that a load generator that fell behind cannot hide a slow server (vLLM counts from the sending).
TPOT is (E2E - TTFT) / (output tokens - 1) of requests with more than one token. ITL is the gap
between two chunks that carry tokens. Throughput divides by the time from the start to the last
request's end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from loadgen.records import Gaps, Records, floats, ints
from loadgen.results import (
    NO_LATENCY,
    Arm,
    Balance,
    Goodput,
    Latency,
    ReplicaResult,
    Schedule,
    Throughput,
)

BUCKETS = 30
BEHIND_MS = 50.0
"""A lag p99 above this makes the load something else than what was asked for."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


def latency(seconds: Floats) -> Latency:
    """Statistics in milliseconds; percentiles interpolate linearly, as numpy's default does."""
    if not len(seconds):
        return NO_LATENCY
    p50, p90, p95, p99 = (float(x) * 1e3 for x in np.percentile(seconds, (50, 90, 95, 99)))
    return Latency(
        count=len(seconds),
        mean=float(seconds.mean()) * 1e3,
        std=float(seconds.std()) * 1e3,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(seconds.max()) * 1e3,
    )


def gap_latency(gaps: Gaps) -> Latency:
    """As latency; mean and count from all gaps, the rest from those kept."""
    kept = np.array(gaps.kept, dtype=np.float64)
    if not len(kept):
        return NO_LATENCY
    p50, p90, p95, p99 = (float(x) * 1e3 for x in np.percentile(kept, (50, 90, 95, 99)))
    mean = gaps.total / gaps.count * 1e3
    std, top = float(kept.std()) * 1e3, float(kept.max()) * 1e3
    return Latency(gaps.count, mean, std, p50, p90, p95, p99, top)


class Columns:
    """A run's records as numpy columns, with what is derived from them."""

    def __init__(self, records: Records) -> None:
        self.session = ints(records.session)
        self.scheduled = floats(records.scheduled)
        self.sent = floats(records.sent)
        self.first = floats(records.first)
        self.end = floats(records.end)
        self.tokens = ints(records.tokens)
        self.possible = ints(records.possible_tokens)
        self.prompt = ints(records.prompt_tokens)
        self.cached = ints(records.cached_tokens)
        self.output = ints(records.output_tokens)
        self.replica = ints(records.replica)
        self.reason = ints(records.reason)
        self.ok: Flags = self.reason == 0
        self.told: Flags = self.ok & (self.cached >= 0) & (self.prompt > 0)
        self.ttft = self.first - self.scheduled
        self.e2e = self.end - self.scheduled
        many = self.output > 1
        self.tpot = np.where(many, (self.end - self.first) / np.where(many, self.output - 1, 1), 0)
        self.has_tpot: Flags = self.ok & many

    def hit_rate(self, which: Flags) -> float | None:
        """Cached over prompt tokens of the requests that told; None when none did."""
        told = self.told & which
        prompt = int(self.prompt[told].sum())
        return int(self.cached[told].sum()) / prompt if prompt else None

    def over_time(self, which: Flags, edges: Floats) -> list[float | None]:
        """Hit rate of the requests that ended in each bucket."""
        told = self.told & which
        if not told.any():
            return [None] * (len(edges) - 1)
        prompt, _ = np.histogram(self.end[told], edges, weights=self.prompt[told])
        cached, _ = np.histogram(self.end[told], edges, weights=self.cached[told])
        return [round(float(c / p), 4) if p else None for c, p in zip(cached, prompt, strict=True)]


def goodput(columns: Columns, objectives_ms: Mapping[str, float], duration: float) -> Goodput:
    """Requests a second that met every objective of ttft, tpot and e2e. TPOT of one token is 0."""
    good = columns.ok.copy()
    known = {"ttft": columns.ttft, "tpot": columns.tpot, "e2e": columns.e2e}
    for name, most in objectives_ms.items():
        if name not in known:
            raise ValueError(f"unknown objective {name!r}: use ttft, tpot or e2e")
        good &= known[name] * 1e3 <= most
    count = int(good.sum())
    return Goodput(dict(objectives_ms), count / duration, count / max(1, len(good)))


def _evenness(values: Floats) -> tuple[float, float]:
    mean = float(values.mean()) if len(values) else 0.0
    if not mean:
        return 0.0, 0.0
    return float(values.std()) / mean, float(values.max()) / mean


def balance(replicas: list[ReplicaResult]) -> Balance:
    """Spread of requests and of work over the replicas; 0 without replicas."""
    requests = np.array([r.requests for r in replicas], dtype=np.float64)
    work = np.array(
        [r.prompt_tokens - r.cached_tokens + r.output_tokens for r in replicas], dtype=np.float64
    )
    return Balance(*_evenness(requests), *_evenness(work))


def schedule(columns: Columns) -> Schedule:
    """How late requests were sent."""
    lag = (columns.sent - columns.scheduled) * 1e3
    if not len(lag):
        return Schedule(0.0, 0.0, 0.0, False)
    p50, p99 = (float(x) for x in np.percentile(lag, (50, 99)))
    return Schedule(p50, p99, float(lag.max()), p99 > BEHIND_MS)


def _quantiles(seconds: Floats) -> list[float]:
    if not len(seconds):
        return []
    return [round(float(x) * 1e3, 3) for x in np.percentile(seconds, np.arange(101))]


def summarise(
    name: str,
    records: Records,
    *,
    objectives_ms: Mapping[str, float] | None = None,
    replicas: tuple[str, ...] = (),
    load: float = 0.0,
) -> Arm:
    """Everything about one run. ``replicas`` names those that must appear even if nothing reached
    them.

    Hit rates of the gateway's answers come from usage; the upper bound from the workload's declared
    lengths. Raises ValueError for an unknown objective.
    """
    columns = Columns(records)
    ok = columns.ok
    ended = columns.end[~np.isnan(columns.end)]
    duration = max(float(ended.max()) if len(ended) else 0.0, 1e-9)
    edges = np.linspace(0.0, duration, BUCKETS + 1)
    prompt = np.where(columns.prompt >= 0, columns.prompt, columns.tokens)
    output = np.maximum(columns.output, 0)
    found: list[ReplicaResult] = []
    names = [name for name in records.replicas.names if name]
    for replica in sorted({*names, *replicas}):
        which = columns.replica == (records.replicas.number(replica) if replica in names else -1)
        found.append(
            ReplicaResult(
                name=replica,
                requests=int(which.sum()),
                errors=int((which & ~ok).sum()),
                prompt_tokens=int(prompt[which & ok].sum()),
                cached_tokens=int(columns.cached[which & columns.told].sum()),
                output_tokens=int(output[which & ok].sum()),
                hit_rate=columns.hit_rate(which),
                ttft_ms=latency(columns.ttft[which & ok]),
                hit_rate_over_time=columns.over_time(which, edges),
            )
        )
    declared = int(columns.tokens.sum())
    reasons = [records.reasons.names[number] for number in columns.reason[~ok]]
    return Arm(
        name=name,
        requests=len(records),
        completed=int(ok.sum()),
        duration_s=duration,
        hit_rate=columns.hit_rate(ok),
        upper_bound=int(columns.possible.sum()) / declared if declared else 0.0,
        ttft_ms=latency(columns.ttft[ok]),
        tpot_ms=latency(columns.tpot[columns.has_tpot]),
        itl_ms=gap_latency(records.gaps),
        e2e_ms=latency(columns.e2e[ok]),
        throughput=Throughput(
            float(ok.sum()) / duration,
            float(prompt[ok].sum()) / duration,
            float(output[ok].sum()) / duration,
        ),
        errors={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        replicas=found,
        balance=balance(found),
        schedule=schedule(columns),
        prompt_tokens=int(prompt[ok].sum()),
        cached_tokens=int(columns.cached[columns.told].sum()),
        output_tokens=int(output[ok].sum()),
        goodput=goodput(columns, objectives_ms, duration) if objectives_ms else None,
        bucket_s=duration / BUCKETS,
        hit_rate_over_time=columns.over_time(ok, edges),
        ttft_quantiles_ms=_quantiles(columns.ttft[ok]),
        e2e_quantiles_ms=_quantiles(columns.e2e[ok]),
        load=load,
    )
