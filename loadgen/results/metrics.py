"""Records into an Arm, with the metrics as vLLM's benchmark (vllm/benchmarks/serve.py) defines
them.

TTFT is the first token's time, E2E the last token's, both here from when the request was due, so
that a load generator that fell behind cannot hide a slow server (vLLM counts from the sending).
TPOT is (E2E - TTFT) / (output tokens - 1) of requests with more than one token. ITL is the gap
between two chunks that carry tokens. Throughput divides by the time from the start to the last
request's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadgen.results.columns import Columns, Floats
from loadgen.results.records import Gaps, Records, floats, joined
from loadgen.results.samples import sample_of, steps_of
from loadgen.results.schema import (
    NO_LATENCY,
    Arm,
    Balance,
    Goodput,
    Latency,
    ReplicaResult,
    Schedule,
    Throughput,
)

BUCKETS = 12
"""Of time: few, so that each holds many requests."""
BEHIND_MS = 50.0
"""A lag p99 above this makes the load something else than what was asked for."""


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


def balance(replicas: Sequence[ReplicaResult], count: int = 0) -> Balance | None:
    """Spread of requests and of work over the replicas, of which there are at least `count`: those
    that got nothing may have no name, and count. None where none is known to have had any."""
    if not any(replica.requests for replica in replicas):
        return None
    requests = np.array([r.requests for r in replicas], dtype=np.float64)
    work = np.array(
        [r.prompt_tokens - r.cached_tokens + r.output_tokens for r in replicas], dtype=np.float64
    )
    idle = np.zeros(max(0, count - len(replicas)))
    return Balance(
        *_evenness(np.concatenate([requests, idle])), *_evenness(np.concatenate([work, idle]))
    )


def mean_balance(runs: Sequence[Balance | None]) -> Balance | None:
    """Of several runs: replicas that were busy in different ones would seem even in all together.
    None when that of one is not known."""
    known = [run for run in runs if run is not None]
    if len(known) < len(runs) or not runs:
        return None
    fields = Balance.__struct_fields__
    return Balance(*(sum(getattr(run, name) for run in known) / len(known) for name in fields))


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


def _duration(ends: Floats) -> float:
    known = ends[~np.isnan(ends)]
    return max(float(known.max()) if len(known) else 0.0, 1e-9)


def summarise(
    name: str,
    *runs: Records,
    objectives_ms: Mapping[str, float] | None = None,
    replicas: Sequence[str] = (),
    count: int = 0,
    load: float = 0.0,
) -> Arm:
    """Everything about an arm's runs, which are taken as one after another but for what is told
    over time, where they lie on top of each other. ``replicas`` names those that must appear even
    if nothing reached them, in this order; ``count`` is how many there are, named or not.

    Hit rates of the gateway's answers come from usage; the upper bound from the workload's declared
    lengths. Raises ValueError for an unknown objective.
    """
    records = joined(runs)
    columns = Columns(records)
    ok = columns.ok
    ended = [floats(run.end) for run in runs]
    within = np.concatenate(ended)
    duration = _duration(columns.end)
    edges = np.linspace(0.0, max(_duration(ends) for ends in ended), BUCKETS + 1)
    found = _replicas(records, columns, replicas, within, edges)
    prompt, output = columns.prompt_told[ok], columns.output_told[ok]
    declared = int(columns.tokens[ok].sum())
    reasons = [records.reasons.names[number] for number in columns.reason[~ok]]
    spread = balance(found, count)
    if len(runs) > 1:
        names = [each.name for each in found]
        spread = mean_balance([_balance_of(run, names, count) for run in runs])
    return Arm(
        name=name,
        requests=len(records),
        completed=int(ok.sum()),
        duration_s=duration,
        hit_rate=columns.hit_rate(ok),
        # Of those that count in the hit rate: what was refused reuses nothing.
        upper_bound=int(columns.possible[ok].sum()) / declared if declared else 0.0,
        ttft_ms=latency(columns.ttft[ok]),
        tpot_ms=latency(columns.tpot[columns.has_tpot]),
        itl_ms=gap_latency(records.gaps),
        e2e_ms=latency(columns.e2e[ok]),
        throughput=Throughput(
            float(ok.sum()) / duration,
            float(prompt.sum()) / duration,
            float(output.sum()) / duration,
        ),
        errors={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        replicas=found,
        balance=spread,
        schedule=schedule(columns),
        prompt_tokens=int(prompt.sum()),
        cached_tokens=int(columns.cached[columns.told].sum()),
        output_tokens=int(output.sum()),
        goodput=goodput(columns, objectives_ms, duration) if objectives_ms else None,
        bucket_s=float(edges[1]),
        hit_rate_over_time=columns.over_time(ok, within, edges),
        ttft_quantiles_ms=_quantiles(columns.ttft[ok]),
        e2e_quantiles_ms=_quantiles(columns.e2e[ok]),
        steps=steps_of(records, columns),
        sample=sample_of(runs),
        repeats=len(runs),
        load=load,
    )


def _replicas(
    records: Records, columns: Columns, names: Sequence[str], within: Floats, edges: Floats
) -> list[ReplicaResult]:
    told = {name: number for number, name in enumerate(records.replicas.names) if name}
    found = []
    for name in (*names, *sorted(told.keys() - set(names))):
        which = columns.replica == told.get(name, -1)
        well = which & columns.ok
        found.append(
            ReplicaResult(
                name=name,
                requests=int(which.sum()),
                errors=int((which & ~columns.ok).sum()),
                prompt_tokens=int(columns.prompt_told[well].sum()),
                cached_tokens=int(columns.cached[which & columns.told].sum()),
                output_tokens=int(columns.output_told[well].sum()),
                hit_rate=columns.hit_rate(which),
                ttft_ms=latency(columns.ttft[well]),
                hit_rate_over_time=columns.over_time(which, within, edges),
            )
        )
    return found


def _balance_of(run: Records, names: Sequence[str], count: int) -> Balance | None:
    found = _replicas(run, Columns(run), names, floats(run.end), np.array([0.0, 1.0]))
    return balance(found, count)
